"""One more day re-reads that day only; what changed or vanished is noticed, and the same rows do not count twice."""

import gzip

import polars as pl
import pytest

from features.collect import collect
from features.files import read_json
from features.ingest import PARQUET, ingest, used_shards
from tests.support import line, make_params

DAYS = {f"day_{day}.tsv": [line(str(row % 2), str(day * 100 + row)) for row in range(50)] for day in range(4)}


@pytest.fixture
def logs(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in list(DAYS)[:3]:
        write(folder / name, DAYS[name])
    write(folder / "day_1.tsv", [*DAYS["day_1.tsv"], "rubbish"])
    return folder


def write(path, lines):
    path.write_text("".join(f"{text}\n" for text in lines))


def run(root, **changes):
    params = make_params(data__source="logs", ingest__max_bad_fraction=0.05, **changes)
    collect(params, root)
    ingest(params, root)
    return {shard.name: (root / PARQUET / shard.parquet).stat() for shard in used_shards(root)}


def content(root):
    return {path.name: path.read_bytes() for path in (root / PARQUET).iterdir()}


def same(before, after, names):
    return all((before[name].st_mtime_ns, before[name].st_ino) == (after[name].st_mtime_ns, after[name].st_ino) for name in names)


def test_a_new_day_is_read_alone(tmp_path, logs, capsys):
    before = run(tmp_path)
    write(logs / "day_3.tsv", DAYS["day_3.tsv"])
    capsys.readouterr()
    after = run(tmp_path)
    assert list(after) == ["day_0.tsv", "day_1.tsv", "day_2.tsv", "day_3.tsv"]
    assert same(before, after, before)
    out = capsys.readouterr().out
    assert "100 %  50 rows" in out
    assert "3 files known from before" in out
    assert pl.read_parquet(tmp_path / PARQUET / "bad_rows.parquet")["raw"].to_list() == [b"rubbish"]
    incremental = content(tmp_path)
    (tmp_path / PARQUET / "manifest.json").unlink()
    run(tmp_path)
    assert content(tmp_path) == incremental  # as if all had been read at once


def test_a_changed_day_and_a_vanished_one(tmp_path, logs):
    before = run(tmp_path)
    write(logs / "day_2.tsv", DAYS["day_3.tsv"])
    (logs / "day_1.tsv").unlink()
    after = run(tmp_path)
    assert list(after) == ["day_0.tsv", "day_2.tsv"]
    assert same(before, after, ["day_0.tsv"])
    assert pl.read_parquet(tmp_path / PARQUET / "day_2.tsv.parquet")["I1"].to_list() == list(range(300, 350))
    assert {path.name for path in (tmp_path / PARQUET).iterdir()} == {
        "day_0.tsv.parquet",
        "day_2.tsv.parquet",
        "bad_rows.parquet",
        "manifest.json",
    }
    assert pl.read_parquet(tmp_path / PARQUET / "bad_rows.parquet").is_empty()


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_damaged_shard_is_made_again(tmp_path, logs, damage):
    run(tmp_path)
    whole = content(tmp_path)
    shard = tmp_path / PARQUET / "day_0.tsv.parquet"
    shard.unlink()
    if damage == "changed":
        shard.write_bytes(whole[shard.name][:-1] + b"?")
    run(tmp_path)
    assert content(tmp_path) == whole


def test_another_dialect_reads_all_again(tmp_path, logs):
    before = run(tmp_path)
    after = run(tmp_path, ingest__short_rows="fill")
    assert not any(same(before, after, [name]) for name in after)


@pytest.mark.parametrize("how", ["copied", "zipped"])
def test_the_same_rows_under_another_name_count_once(tmp_path, logs, capsys, how):
    run(tmp_path)
    text = (logs / "day_1.tsv").read_bytes()
    again = logs / ("day_7.tsv" if how == "copied" else "day_7.tsv.gz")
    again.write_bytes(text if how == "copied" else gzip.compress(text))
    for _ in range(2):  # found, and known from the run before
        assert list(run(tmp_path)) == ["day_0.tsv", "day_1.tsv", "day_2.tsv"]
        assert f"{again.name} holds the same rows as day_1.tsv" in capsys.readouterr().out
    manifest = read_json(tmp_path / PARQUET / "manifest.json")
    assert manifest["num_rows"] == 150
    assert [file["same_rows_as"] for file in manifest["files"]] == [None, None, None, "day_1.tsv"]
    (logs / "day_1.tsv").unlink()  # now the copy stands for them
    assert list(run(tmp_path)) == ["day_0.tsv", "day_2.tsv", again.name]
