"""Days of several parts: their rows are those of the parts, and they make the same features."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.artifact import MANIFEST, Artifact, write_manifest
from common.layout import FEATURES, PARQUET
from features.collect.stage import collect
from features.dataset.stage import build_features
from features.encode.days import Day, read_days, rows_of_days, train_rows
from features.encode.split import TEST, TRAIN
from features.encode.stretches import MAX_GAP
from features.ingest.shard import Shard
from features.ingest.stage import ingest, shards_of
from tests.factories.support import make_params


def write_parts(folder: Path, days_of_shards: list[dict[str, int]]) -> list[Shard]:
    """Write a shard for each item, whose rows are numbered through all shards."""
    shards, number = [], 0
    for k, days in enumerate(days_of_shards):
        num_rows = sum(days.values())
        rows = pl.DataFrame({"number": range(number, number + num_rows)}, {"number": pl.Int64})
        rows.write_parquet(folder / f"{k}.parquet")
        shards.append(Shard(f"{k}", "", f"{k}.parquet", f"hash {k}", num_rows, 0, None, days))
        number += num_rows
    write_manifest(folder, {})
    return shards


def numbers(rows: pl.LazyFrame) -> list[int]:
    """Return the numbers of rows."""
    return rows.collect()["number"].to_list()


@pytest.fixture(params=[0, 1, MAX_GAP])
def days(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> list[Day]:
    """Three days: of the shards 0 and 1, of all shards, and of shard 2."""
    monkeypatch.setattr("features.encode.stretches.MAX_GAP", request.param)
    shards = write_parts(
        tmp_path,
        [{"2026-01-10": 2, "2026-01-11": 3}, {"2026-01-10": 1, "2026-01-11": 1}, {"2026-01-12": 2}],
    )
    return read_days(Artifact.open(tmp_path), shards, num_days=1)


def test_the_rows_of_a_day_are_those_of_its_parts(days: list[Day]) -> None:
    assert [day.name for day in days] == ["2026-01-10", "2026-01-11", "2026-01-12"]
    assert [numbers(day.all_rows()) for day in days] == [[0, 1, 5], [2, 3, 4, 6], [7, 8]]
    for day in days:
        whole = numbers(day.all_rows())
        for start in range(day.num_rows + 1):
            for end in range(start, day.num_rows + 1):
                assert numbers(day.rows(start, end)) == whole[start:end]


def test_training_rows_are_selected_in_all_parts(days: list[Day]) -> None:
    codes = {0: [TRAIN, TEST, TRAIN], 1: [TRAIN] * 4, 2: [TEST, TRAIN]}
    split_of_day = {k: pl.Series(codes[k], dtype=pl.UInt8).to_numpy() for k in codes}.__getitem__
    assert numbers(train_rows(days, [0, 1, 2], split_of_day)) == [0, 5, 2, 3, 4, 6, 8]


def test_the_rows_of_all_days_are_read_day_by_day(days: list[Day]) -> None:
    assert numbers(rows_of_days(days)) == [0, 1, 5, 2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize("rows_by_day", [{"day 1": 3}, {"day 1": 1, "day 2": 2}])
def test_many_small_files_are_read_by_few_scans(
    tmp_path: Path, rows_by_day: dict[str, int]
) -> None:
    """The time of a plan is quadratic in the number of its scans."""
    shards = write_parts(tmp_path, [rows_by_day] * 50)
    days = read_days(Artifact.open(tmp_path), shards, num_days=1)
    codes = np.full(days[0].num_rows, TRAIN, np.uint8)
    plans = [days[-1].all_rows(), rows_of_days(days), train_rows(days, [0], lambda _: codes)]
    for plan in plans:
        assert plan.explain().count("Parquet SCAN") <= len(rows_by_day)


def test_two_dates_with_equal_rows_are_two_days(days: list[Day]) -> None:
    """A log file with the rows of another one is that day again; a date is not."""
    files = [replace(days[0], name=name, is_dated=False) for name in ("a", "b")]
    assert files[0].sha256 == files[1].sha256
    assert days[0].sha256 != replace(days[0], name="2026-01-13").sha256


def test_days_are_in_natural_order_of_their_names(tmp_path: Path) -> None:
    shards = write_parts(tmp_path, [{"day 10": 1}, {"day 9": 1}])
    days = read_days(Artifact.open(tmp_path), shards, num_days=1)
    assert [numbers(day.all_rows()) for day in days] == [[1], [0]]


def test_a_day_of_many_parts_has_the_features_of_a_day_of_one_file(tmp_path: Path) -> None:
    """Every day is cut into three files; the encoded files are the same to the byte."""
    lines = [f"{k % 2}\t{k}{'' if k % 5 else '0'}" + "\t" * 12 + "\t0a" * 26 for k in range(600)]
    for layout, num_parts in (("whole", 1), ("parts", 3)):
        root = tmp_path / layout
        (root / "clicks").mkdir(parents=True)
        for day in range(3):
            for part in range(num_parts):
                size = 200 // num_parts + 1
                rows = lines[200 * day : 200 * day + 200][part * size : (part + 1) * size]
                (root / "clicks" / f"{day}-{part}.tsv").write_text("\n".join(rows) + "\n")
        params = make_params(data__source="clicks", features__fit_days=1)
        collect(params, root)
        ingest(params, root)
        _name_days(root / PARQUET)
        build_features(params, root)
    whole, parts = (Artifact.open(tmp_path / layout / FEATURES) for layout in ("whole", "parts"))
    encoded = [name for name in whole.files if name.endswith(".parquet")]
    assert len(encoded) > 26
    for name in encoded:
        assert parts.files[name].sha256 == whole.files[name].sha256, name
    profiles = [artifact.read_json("data.json")["days"] for artifact in (whole, parts)]
    assert profiles[0] == profiles[1]


def _name_days(parquet: Path) -> None:
    """Record in the shards that the part of a name before the hyphen is the day."""
    artifact = Artifact.open(parquet)
    shards = [
        {**vars(shard), "days": {shard.name.split("-")[0]: shard.num_rows}}
        for shard in shards_of(artifact)
    ]
    about = json.loads((parquet / MANIFEST).read_text())["about"]
    write_manifest(parquet, {**about, "shards": shards})
