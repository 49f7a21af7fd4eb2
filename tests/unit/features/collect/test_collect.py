"""The stage `collect`: which files are copied, which changes are noticed, what is refused."""

import gzip
import os
from pathlib import Path

import pytest

from common.files import DataError
from common.natural_order import natural_order_key
from features.collect.stage import (
    RAW,
    SOURCE_HOME,
    RawManifest,
    collect,
    source_changed,
    source_files,
)
from flows.cli.sample import write_named_sample
from tests.factories.support import line, make_params


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder of three day files and of files that are not logs."""
    folder = tmp_path / "logs"
    folder.mkdir()
    for day in (0, 2, 10):
        (folder / f"day_{day}.tsv").write_text((line() + "\n") * (day + 1))
    (folder / "notes.md").write_text("not a log")
    (folder / ".hidden").write_text("not a log")
    return folder


def names(root: Path) -> list[str]:
    return [file.name for file in RawManifest.read(root / RAW).files]


@pytest.mark.parametrize("source", ["logs", "logs/day_*.tsv", "{absolute}/day_*.tsv", "{absolute}"])
def test_folders_and_globs_in_natural_order(tmp_path: Path, logs: Path, source: str) -> None:
    params = make_params(data__source=source.format(absolute=logs))
    collect(params, tmp_path)
    assert names(tmp_path) == ["day_0.tsv", "day_2.tsv", "day_10.tsv"]
    assert {path.name for path in (tmp_path / RAW).iterdir()} == {*names(tmp_path), "manifest.json"}
    assert (tmp_path / RAW / "day_10.tsv").read_bytes() == (logs / "day_10.tsv").read_bytes()


def test_day_files_without_an_ending(tmp_path: Path) -> None:
    (tmp_path / "days").mkdir()
    for day in (10, 9):
        (tmp_path / "days" / f"day_{day}").write_text(line() + "\n")
    collect(make_params(data__source="days"), tmp_path)
    assert names(tmp_path) == ["day_9", "day_10"]


def test_every_kind_of_log_in_a_folder(tmp_path: Path) -> None:
    kinds = [
        "day_0.csv",
        "day_1.json",
        "day_2.jsonl",
        "day_3.jsonl.gz",
        "day_4.parquet",
        "day_5.tsv.gz",
        "day_6.txt",
        *[f"day_10.csv.{codec}" for codec in ("bz2", "lz4", "xz", "zip", "zst")],
        *[f"day_11.{kind}" for kind in ("arrow", "arrows", "feather", "ipc", "ndjson", "orc")],
    ]
    (tmp_path / "logs").mkdir()
    for name in [*kinds, "day_7.yaml", "day_8.csv.bak"]:
        (tmp_path / "logs" / name).write_text("any")
    assert [
        path.name for path in source_files(make_params(data__source="logs").data, tmp_path)
    ] == kinds


def test_files_after_until_are_not_copied(tmp_path: Path, logs: Path) -> None:
    params = make_params(data__source="logs", data__until="day_2.tsv")
    collect(make_params(data__source="logs"), tmp_path)
    assert source_changed(params, tmp_path)
    (logs / "day_11.tsv").touch()  # still being written
    collect(params, tmp_path)
    assert names(tmp_path) == ["day_0.tsv", "day_2.tsv"]
    assert not (tmp_path / RAW / "day_10.tsv").exists()
    (logs / "day_10.tsv").write_text(line("1") + "\n")
    assert not source_changed(params, tmp_path)
    (logs / "day_1.tsv").write_text(line() + "\n")  # a late file, in order before `until`
    assert source_changed(params, tmp_path)
    with pytest.raises(
        DataError,
        match=r"data\.until: no log called 'day_2' at 'logs'; there are day_0\.tsv to day_11\.tsv",
    ):
        collect(make_params(data__source="logs", data__until="day_2"), tmp_path)


def test_a_relative_source_is_in_the_folder_of_the_environment_variable(
    tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOURCE_HOME, str(tmp_path))
    clone = tmp_path / "clone"
    collect(make_params(data__source="logs"), clone)
    assert names(clone) == ["day_0.tsv", "day_2.tsv", "day_10.tsv"]
    assert not source_changed(
        make_params(data__source=str(logs)), clone
    )  # an absolute path is not affected


def test_natural_order() -> None:
    expected = ["9", "10", "10²", "day", "day_9", "day_9b", "day_10"]  # ² is not a decimal digit
    shuffled = expected[::-1]
    assert sorted(shuffled, key=natural_order_key) == expected


@pytest.mark.parametrize("name", ["manifest.json", "bad_rows"])
def test_a_reserved_name_is_refused(tmp_path: Path, logs: Path, name: str) -> None:
    (logs / name).write_text(line())
    with pytest.raises(DataError, match=f"a log cannot be called {name}; rename it"):
        collect(make_params(data__source="logs"), tmp_path)


def test_only_new_and_changed_files_are_copied(
    tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = make_params(data__source="logs")
    assert source_changed(params, tmp_path)
    collect(params, tmp_path)
    assert not source_changed(params, tmp_path)
    before = (tmp_path / RAW / "day_2.tsv").stat().st_ino
    (logs / "day_11.tsv.gz").write_bytes(gzip.compress(line().encode()))
    (logs / "day_0.tsv").write_text(line("1") + "\n")
    (logs / "day_10.tsv").unlink()
    assert source_changed(params, tmp_path)
    capsys.readouterr()
    collect(params, tmp_path)
    assert names(tmp_path) == ["day_0.tsv", "day_2.tsv", "day_11.tsv.gz"]
    assert capsys.readouterr().out.count("bytes") == 2
    assert not (tmp_path / RAW / "day_10.tsv").exists()
    assert (tmp_path / RAW / "day_2.tsv").stat().st_ino == before


def test_a_touched_file_is_unchanged_and_an_edited_one_is_not(tmp_path: Path, logs: Path) -> None:
    params = make_params(data__source="logs")
    collect(params, tmp_path)
    os.utime(logs / "day_0.tsv")
    assert not source_changed(params, tmp_path)
    (logs / "day_0.tsv").write_text(line("1") + "\n")  # of the same size
    assert source_changed(params, tmp_path)


def test_the_sample_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = make_params(sample__num_rows=500)
    collect(params, tmp_path)
    assert names(tmp_path) == ["sample.tsv"]
    made = (tmp_path / RAW / "sample.tsv").read_bytes()
    assert made.count(b"\n") == 500
    capsys.readouterr()
    collect(params, tmp_path)
    assert "unchanged" in capsys.readouterr().out
    collect(make_params(sample__num_rows=500, sample__seed=2), tmp_path)
    assert (tmp_path / RAW / "sample.tsv").read_bytes() != made


def test_nothing_of_the_sample_stays_beside_a_log(tmp_path: Path, logs: Path) -> None:
    collect(make_params(sample__num_rows=500), tmp_path)
    collect(make_params(data__source="logs/day_2.tsv"), tmp_path)
    assert {path.name for path in (tmp_path / RAW).iterdir()} == {"day_2.tsv", "manifest.json"}


def test_missing_and_equally_named_files_are_refused(tmp_path: Path, logs: Path) -> None:
    with pytest.raises(DataError, match=r"no log found at 'nowhere\.tsv'"):
        collect(make_params(data__source="nowhere.tsv"), tmp_path)
    (logs / "again").mkdir()
    (logs / "again" / "day_0.tsv").write_text(line())
    with pytest.raises(DataError, match=r"two files called day_0\.tsv"):
        collect(make_params(data__source="logs/**/day_0.tsv"), tmp_path)
    assert not (tmp_path / RAW / "manifest.json").exists()


def test_the_files_that_sample_writes_beside_a_log_are_no_logs(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    params = make_params(sample__num_rows=300)
    write_named_sample(params, tmp_path, tmp_path / "logs" / "day_0.tsv", 300, 1, 1)
    assert len([*(tmp_path / "logs").iterdir()]) == 3
    alone = tmp_path / "logs" / "day_1.truth.parquet"  # beside no log, so it may be one
    alone.write_text("x")
    for source in ("logs", "logs/day_*"):
        files = source_files(make_params(data__source=source).data, tmp_path)
        assert [file.name for file in files] == ["day_0.tsv", alone.name]
    named = source_files(make_params(data__source="logs/day_0.tsv.truth.parquet").data, tmp_path)
    assert [file.name for file in named] == ["day_0.tsv.truth.parquet"]


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path: Path, logs: Path) -> None:
    logs.rename(tmp_path / "[l]ogs*")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "day_5.tsv").write_text(line() + "\n")
    for source in ("[l]ogs*/day_*.tsv", f"{tmp_path}/[l]ogs*/day_*.tsv", "[l]ogs*"):
        files = source_files(make_params(data__source=source).data, tmp_path)
        assert [file.name for file in files] == ["day_0.tsv", "day_2.tsv", "day_10.tsv"]
    inside = source_files(make_params(data__source="day_*.tsv").data, tmp_path / "[l]ogs*")
    assert len(inside) == 3  # the folder of the repository has such a name


def test_home_in_the_source(tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("~/logs", "~/logs/day_*.tsv"):
        files = source_files(make_params(data__source=source).data, tmp_path / "elsewhere")
        assert [file.name for file in files] == ["day_0.tsv", "day_2.tsv", "day_10.tsv"]
    with pytest.raises(DataError, match=r"at '\$HOME/logs' \(variables such as \$HOME are not"):
        source_files(make_params(data__source="$HOME/logs").data, tmp_path)
