"""Ingest with one more day reads that day only, and notices days that changed or vanished."""

import gzip
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.artifact import Artifact
from common.files import DataError
from common.layout import PARQUET
from features.collect.stage import collect
from features.ingest.shard import CODE_HASHES, recipe_hash
from features.ingest.stage import SHARDS_DIR, ingest, used_shards
from features.schema.schema import Schema
from tests.factories.support import CRITEO, line, make_params

DAYS = {
    f"day_{day}.tsv": [line(str(row % 2), str(day * 100 + row)) for row in range(50)]
    for day in range(4)
}


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in list(DAYS)[:3]:
        write(folder / name, DAYS[name])
    write(folder / "day_1.tsv", [*DAYS["day_1.tsv"], "rubbish"])
    return folder


def write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{text}\n" for text in lines))


def run(root: Path, **changes: Any) -> dict[str, os.stat_result]:
    params = make_params(data__source="logs", ingest__max_bad_fraction=0.05, **changes)
    collect(params, root)
    ingest(params, root)
    return {
        shard.name: (root / PARQUET / shard.parquet).stat()
        for shard in used_shards(Artifact.open(root / PARQUET))
    }


def content(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / PARQUET).iterdir()}


def same(
    before: dict[str, os.stat_result], after: dict[str, os.stat_result], names: Iterable[str]
) -> bool:
    return all(
        (before[name].st_mtime_ns, before[name].st_ino)
        == (after[name].st_mtime_ns, after[name].st_ino)
        for name in names
    )


def test_a_new_day_is_read_alone(
    tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run(tmp_path)
    write(logs / "day_3.tsv", DAYS["day_3.tsv"])
    capsys.readouterr()
    after = run(tmp_path)
    assert list(after) == ["day_0.tsv", "day_1.tsv", "day_2.tsv", "day_3.tsv"]
    assert same(before, after, before)
    out = capsys.readouterr().out
    assert "100 %  50 rows" in out
    assert "3 files are reused" in out
    assert pl.read_parquet(tmp_path / PARQUET / "bad_rows.parquet")["raw"].to_list() == [b"rubbish"]
    incremental = content(tmp_path)
    (tmp_path / PARQUET / "manifest.json").unlink()
    run(tmp_path)
    assert content(tmp_path) == incremental  # as if all files had been read at once


def test_a_changed_day_and_a_vanished_one(tmp_path: Path, logs: Path) -> None:
    before = run(tmp_path)
    write(logs / "day_2.tsv", DAYS["day_3.tsv"])
    (logs / "day_1.tsv").unlink()
    after = run(tmp_path)
    assert list(after) == ["day_0.tsv", "day_2.tsv"]
    assert same(before, after, ["day_0.tsv"])
    assert pl.read_parquet(tmp_path / PARQUET / "day_2.tsv.parquet")["I1"].to_list() == list(
        range(300, 350)
    )
    assert {path.name for path in (tmp_path / PARQUET).iterdir()} == {
        "day_0.tsv.parquet",
        "day_2.tsv.parquet",
        "bad_rows.parquet",
        "manifest.json",
    }
    assert pl.read_parquet(tmp_path / PARQUET / "bad_rows.parquet").is_empty()


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_damaged_shard_is_made_again(tmp_path: Path, logs: Path, damage: str) -> None:
    run(tmp_path)
    whole = content(tmp_path)
    shard = tmp_path / PARQUET / "day_0.tsv.parquet"
    shard.unlink()
    if damage == "changed":
        shard.write_bytes(whole[shard.name][:-1] + b"?")
    run(tmp_path)
    assert content(tmp_path) == whole


def test_another_dialect_reads_all_again(tmp_path: Path, logs: Path) -> None:
    before = run(tmp_path)
    after = run(tmp_path, ingest__short_rows="fill")
    assert not any(same(before, after, [name]) for name in after)


@pytest.mark.parametrize("how", ["copied", "zipped"])
def test_the_same_rows_under_another_name_count_once(
    tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    run(tmp_path)
    text = (logs / "day_1.tsv").read_bytes()
    again = logs / ("day_7.tsv" if how == "copied" else "day_7.tsv.gz")
    again.write_bytes(text if how == "copied" else gzip.compress(text))
    for _ in range(2):  # found, and known from the run before
        assert list(run(tmp_path)) == ["day_0.tsv", "day_1.tsv", "day_2.tsv"]
        assert f"{again.name} contains the same rows as day_1.tsv" in capsys.readouterr().out
    manifest = Artifact.open(tmp_path / PARQUET).about
    assert manifest["num_rows"] == 150
    bad_rows = pl.read_parquet(tmp_path / PARQUET / "bad_rows.parquet")
    assert bad_rows["file"].to_list() == [
        "day_1.tsv"
    ]  # the bad rows of the copy do not count again
    assert manifest["num_bad_rows"] == bad_rows.height
    assert [file["same_rows_as"] for file in manifest["shards"]] == [None, None, None, "day_1.tsv"]
    (logs / "day_1.tsv").unlink()  # now the copy counts
    assert list(run(tmp_path)) == ["day_0.tsv", "day_2.tsv", again.name]


def fail(root: Path, logs: Path) -> None:
    """Run ingest so that it reads day_0 and day_1, and fails because day_2 is no log."""
    whole = (logs / "day_2.tsv").read_bytes()
    (logs / "day_2.tsv").write_text("not\ta\tlog\n" * 50)
    with pytest.raises(DataError, match=r"day_2\.tsv"):
        run(root)
    (logs / "day_2.tsv").write_bytes(whole)
    assert not (root / PARQUET).exists()


def test_what_a_failed_run_finished_is_not_read_again(
    tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(tmp_path, logs)
    capsys.readouterr()
    after = run(tmp_path)
    out = capsys.readouterr().out
    assert list(after) == ["day_0.tsv", "day_1.tsv", "day_2.tsv"]
    assert "100 %  50 rows" in out
    assert "2 files are reused" in out
    assert not (tmp_path / SHARDS_DIR).exists()
    resumed = content(tmp_path)
    (tmp_path / PARQUET / "manifest.json").unlink()
    run(tmp_path)
    assert content(tmp_path) == resumed  # as if no run had failed


@pytest.mark.parametrize(
    "damage",
    [
        "record gone",
        "record broken",
        "record digit",
        "shard gone",
        "shard changed",
        "bad rows changed",
        "of an attempt",
    ],
)
def test_a_damaged_shard_of_a_failed_run_is_not_reused(
    tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    fail(tmp_path, logs)
    name = {"shard": "shard.parquet", "bad": "bad_rows.parquet"}.get(
        damage.split()[0], "shard.json"
    )
    file = min((tmp_path / SHARDS_DIR).glob(f"*/{name}"))  # one of two shards has bad rows
    part = file.parent
    if damage.endswith("gone"):
        file.unlink()
    elif damage == "of an attempt":
        part.rename(part.with_name(f".{part.name}.0.tmp"))
    elif damage == "record digit":
        text = file.read_text()
        place = text.index('"num_rows": ') + len('"num_rows": ')
        file.write_text(f"{text[:place]}7{text[place + 1 :]}")
        assert file.read_text() != text
    else:
        file.write_bytes(file.read_bytes()[:-2] + b"??")
    capsys.readouterr()
    run(tmp_path)
    assert "1 files are reused" in capsys.readouterr().out
    damaged = content(tmp_path)
    (tmp_path / PARQUET / "manifest.json").unlink()
    run(tmp_path)
    assert content(tmp_path) == damaged


def test_a_higher_limit_of_bad_rows_reads_nothing_again(
    tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(logs / "day_1.tsv", [*DAYS["day_1.tsv"], *["rubbish"] * 20])
    with pytest.raises(DataError, match="max_bad_fraction"):
        run(tmp_path)
    ingest(make_params(data__source="logs", ingest__max_bad_fraction=0.5), tmp_path)
    assert "3 files are reused" in capsys.readouterr().out
    assert pl.read_parquet(tmp_path / PARQUET / "bad_rows.parquet").height == 20


def test_bad_rows_of_many_blocks_are_the_same_bytes_when_reused(tmp_path: Path, logs: Path) -> None:
    write(logs / "day_1.tsv", ["rubbish", *[line()] * 60_000, "more rubbish"])
    run(tmp_path)
    before = content(tmp_path)
    (tmp_path / PARQUET / "day_2.tsv.parquet").unlink()
    run(tmp_path)
    assert content(tmp_path) == before


def test_what_a_shard_depends_on() -> None:
    """A shard depends on the code that reads logs, and on the schema as far as reading goes."""
    assert {
        "features.ingest.shard",
        "features.ingest.readers.read_log",
        "features.ingest.readers.blocks",
        "features.ingest.readers.row_validation",
        "common.parquet",
        "features.schema.schema",
    } <= set(CODE_HASHES)
    assert not [
        name
        for name in CODE_HASHES
        if name.startswith(
            ("features.schema.transforms", "features.dataset.stage", "features.ingest.stage")
        )
    ]

    def changed(kind: str, key: str, value: object) -> str:
        values = CRITEO.model_dump(mode="json")
        next(group for group in values["columns"] if group["kind"] == kind)[key] = value
        return recipe_hash(Schema.model_validate(values), "fill")

    assert changed("categorical", "policy", {"name": "hash", "buckets": 7}) == recipe_hash(
        CRITEO, "fill"
    )
    assert (
        len(
            {
                recipe_hash(CRITEO, "fill"),
                recipe_hash(CRITEO, "quarantine"),
                changed("categorical", "parse", "string"),
            }
        )
        == 3
    )
