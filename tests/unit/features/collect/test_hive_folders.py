"""Logs in folders named by day, from the folders to the encoded rows, and to scores."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.artifact import Artifact
from common.files import DataError
from common.layout import FEATURES, PARQUET, RAW
from features.collect.stage import collect, find_source, source_changed
from features.encode.days import read_days
from features.ingest import stage
from features.ingest.readers.read_log import has_label, read_log
from features.ingest.stage import ingest, shards_of, used_shards
from features.schema.schema import Schema, load_schema
from flows.nightly.log_changes import find_log_changes, read_duplicates, read_log_files
from tests.factories.hive_logs import NUM_ROWS, SCHEMA, schema_of_folders, write_log, write_part
from tests.factories.support import make_features, make_params


@pytest.fixture
def schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Schema:
    """The schema, which the stages find under the name of Criteo's."""
    return schema_of_folders(tmp_path, monkeypatch)


def test_partitions_are_days_and_columns(tmp_path: Path, schema: Schema) -> None:
    params = write_log(tmp_path)
    make_features(tmp_path, params)
    assert not source_changed(params, tmp_path)
    parquet = Artifact.open(tmp_path / PARQUET)
    shards = used_shards(parquet)
    assert [shard.name for shard in shards][:2] == [
        "day=2026-01-09/hour=07/part-0.parquet",
        "day=2026-01-09/hour=10/part-0.parquet",
    ]
    assert (tmp_path / PARQUET / f"{shards[0].name}.parquet").is_file()
    days = read_days(parquet, shards, 1)
    assert [(day.name, day.num_rows) for day in days] == [
        ("2026-01-09", 2 * NUM_ROWS),
        ("2026-01-10", 2 * NUM_ROWS),
        ("2026-01-11", 3 * NUM_ROWS),
    ]
    rows = days[2].all_rows().collect()
    assert rows.columns == ["click", "day", "price", "hour", "site"]
    assert rows["day"].dt.to_string("%Y-%m-%d").unique().to_list() == ["2026-01-11"]
    assert rows["hour"].to_list() == [7] * NUM_ROWS + [10] * NUM_ROWS + [None] * NUM_ROWS
    data = Artifact.open(tmp_path / FEATURES).read_json("data.json")
    assert [day["name"] for day in data["days"]] == ["2026-01-09", "2026-01-10", "2026-01-11"]


def test_equal_files_in_other_folders_have_other_columns(
    tmp_path: Path, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = write_log(tmp_path)
    for hour in ("11", "12"):
        write_part(tmp_path, f"day=2026-01-09/hour={hour}/part-0.parquet", 0)
    collect(params, tmp_path)
    ingest(params, tmp_path)
    shards = used_shards(Artifact.open(tmp_path / PARQUET))
    assert len(shards) == 9
    assert len({shard.parquet_sha256 for shard in shards}) == 9
    read: list[str] = []

    def runner(jobs: Any, report: Any) -> Any:
        read.extend(job.name for job in jobs)
        return stage.run_locally(jobs, report)

    ingest(params, tmp_path, runner)
    assert read == []  # all are reused, each with its own columns
    assert used_shards(Artifact.open(tmp_path / PARQUET)) == shards
    (tmp_path / "logs/day=2026-01-09/hour=11").rename(tmp_path / "logs/day=2026-01-09/hour=13")
    collect(params, tmp_path)
    ingest(params, tmp_path, runner)
    assert read == ["day=2026-01-09/hour=13/part-0.parquet"]


def test_parts_with_equal_rows_are_counted_unless_they_are_the_same_file(
    tmp_path: Path, schema: Schema
) -> None:
    """Two small parts can have equal rows by chance; a file that is there twice is a mistake."""
    params = write_log(tmp_path)
    folder = tmp_path / "logs" / "day=2026-01-09" / "hour=07"
    part = folder / "part-0.parquet"
    pl.read_parquet(part).write_parquet(folder / "part-1.parquet", compression="uncompressed")
    (folder / "part-2.parquet").write_bytes(part.read_bytes())
    collect(params, tmp_path)
    ingest(params, tmp_path)
    parquet = Artifact.open(tmp_path / PARQUET)
    same = {shard.name: shard.same_rows_as for shard in shards_of(parquet)}
    prefix = "day=2026-01-09/hour=07"
    assert same[f"{prefix}/part-1.parquet"] is None
    assert same[f"{prefix}/part-2.parquet"] == f"{prefix}/part-0.parquet"
    assert read_days(parquet, used_shards(parquet), 1)[0].num_rows == 3 * NUM_ROWS


def test_a_late_part_changes_its_day_and_a_new_day_is_new(tmp_path: Path, schema: Schema) -> None:
    params = write_log(tmp_path)
    collect(params, tmp_path)
    before = read_log_files(tmp_path)
    assert [*before] == ["2026-01-09", "2026-01-10", "2026-01-11"]
    write_part(tmp_path, "day=2026-01-10/hour=23/part-0.parquet", 77)
    write_part(tmp_path, "day=2026-01-08/hour=01/part-0.parquet", 78)
    write_part(tmp_path, "day=2026-01-12/hour=01/part-0.parquet", 79)
    write_part(tmp_path, "day=2026-01-13/hour=01/part-0.parquet", 79)
    assert source_changed(params, tmp_path)
    collect(params, tmp_path)
    ingest(params, tmp_path)
    changes = find_log_changes(before, read_log_files(tmp_path), read_duplicates(tmp_path))
    assert changes == {
        "new": ["2026-01-12", "2026-01-13"],
        "late": ["2026-01-08"],
        "delivered again": ["2026-01-10"],
    }


def test_until_is_a_day(tmp_path: Path, schema: Schema) -> None:
    write_log(tmp_path)
    data = make_params(data__source="logs", data__until="2026-01-10").data
    found = find_source(data, tmp_path).discovery
    assert found.days == ["2026-01-09", "2026-01-10"]
    assert len(found.logs) == 4
    assert len(found.not_taken["after data.until"]) == 3
    with pytest.raises(DataError, match="there are 2026-01-09 to 2026-01-11"):
        find_source(make_params(data__source="logs", data__until="x").data, tmp_path)


@pytest.mark.parametrize("kind", ["text", "json_lines", "parquet"])
def test_a_column_of_the_folders_that_is_also_in_the_files(tmp_path: Path, kind: str) -> None:
    """The folder counts, as it does for Spark."""
    log_format: dict[str, Any] = {"kind": kind, "null_tokens": [""]}
    if kind == "text":
        log_format |= {"separator": ",", "quote": None, "header": True}
    schema = Schema.model_validate(SCHEMA | {"format": log_format})
    rows = pl.DataFrame(
        {"hour": [5, 6], "click": [0, 1], "price": [1.5, 2.5], "site": ["a", "b"], "day": "x"}
    )
    path = tmp_path / "log"
    {"text": rows.write_csv, "json_lines": rows.write_ndjson, "parquet": rows.write_parquet}[kind](
        path
    )
    partitions = {"day": "2026-01-09", "hour": "07"}
    assert has_label(path, schema, partitions)
    (piece,) = read_log(path, schema, labelled=True, short_rows="quarantine", partitions=partitions)
    assert piece.rows.rows() == [
        (0, datetime(2026, 1, 9), 1.5, 7, "a"),
        (1, datetime(2026, 1, 9), 2.5, 7, "b"),
    ]


def test_a_value_that_its_column_cannot_have_is_refused(tmp_path: Path, schema: Schema) -> None:
    params = write_log(tmp_path)
    write_part(tmp_path, "day=2026-01-10/hour=noon/part-0.parquet", 1)
    collect(params, tmp_path)
    with pytest.raises(
        DataError, match=r"hour='?noon'? in its path is not an integer of 64 bits; correct"
    ):
        ingest(params, tmp_path)


def test_a_partition_of_the_label_is_refused(tmp_path: Path, schema: Schema) -> None:
    write_part(tmp_path, "click=1/part-0.parquet", 1)
    with pytest.raises(DataError, match="in a partition of the label, click; write the label into"):
        collect(make_params(data__source="logs"), tmp_path)


def test_a_schema_with_a_new_column_of_the_folders_is_a_change(
    tmp_path: Path, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = write_log(tmp_path)
    without_hour = json.loads(json.dumps(SCHEMA))
    without_hour["columns"][3]["names"] = ["device"]
    older = Schema.model_validate(without_hour)
    with monkeypatch.context() as patched:
        patched.setattr("features.collect.stage.load_schema", lambda name: older)
        collect(params, tmp_path)
        assert not source_changed(params, tmp_path)
    assert source_changed(params, tmp_path)


def test_a_folder_that_is_itself_a_partition(tmp_path: Path, schema: Schema) -> None:
    write_log(tmp_path)
    params = make_params(data__source="logs/day=2026-01-09")
    collect(params, tmp_path)
    ingest(params, tmp_path)
    shards = used_shards(Artifact.open(tmp_path / PARQUET))
    assert [shard.partitions for shard in shards] == [
        {"day": "2026-01-09", "hour": "07"},
        {"day": "2026-01-09", "hour": "10"},
    ]
    assert [shard.days for shard in shards] == [{"07": NUM_ROWS}, {"10": NUM_ROWS}]


@pytest.mark.parametrize("source", ["table", "table/day=1", "table/*/*.parquet"])
def test_a_delta_table_is_refused_however_it_is_named(tmp_path: Path, source: str) -> None:
    for name in ("day=1/p.parquet", "_delta_log/0.json"):
        (tmp_path / "table" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "table" / name).touch()
    with pytest.raises(DataError, match=r"data\.source: .*_delta_log/ belongs to a table of Delta"):
        collect(make_params(data__source=source), tmp_path)
    assert not (tmp_path / RAW).exists()


def test_the_shipped_schema_without_columns(schema: Schema) -> None:
    assert schema.without(["hour", "click"]).names == ["click", "day", "price", "site", "region"]
    assert schema.without(["unknown"]) is schema
    assert load_schema("criteo").without(["I1", "C26"]).names[:2] == ["label", "I2"]
