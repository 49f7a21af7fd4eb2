"""The stage `collect`: which files are copied, which changes are noticed, what is refused."""

import gzip
import os
import shutil
from pathlib import Path

import pytest

from common.artifact import Artifact, write_manifest
from common.files import DataError, read_json
from common.layout import RAW
from common.natural_order import natural_order_key
from features.collect.manifest import RawManifest
from features.collect.stage import NOT_TAKEN, SOURCE_HOME, collect, find_source, source_changed
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


def found(source: str, root: Path) -> list[str]:
    return find_source(make_params(data__source=source).data, root).discovery.days


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
    assert found("logs", tmp_path) == kinds


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
        match=r"data\.until: no log or day called 'day_2' at 'logs'; there are day_0\.tsv to day_11\.tsv",
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


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no log found at 'nowhere\.tsv'"):
        collect(make_params(data__source="nowhere.tsv"), tmp_path)
    assert not (tmp_path / RAW / "manifest.json").exists()


def test_the_files_that_sample_writes_beside_a_log_are_no_logs(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    params = make_params(sample__num_rows=300)
    write_named_sample(params, tmp_path, tmp_path / "logs" / "day_0.tsv", 300, 1, 1)
    assert len([*(tmp_path / "logs").iterdir()]) == 3
    alone = tmp_path / "logs" / "day_1.truth.parquet"  # beside no log, so it may be one
    alone.write_text("x")
    for source in ("logs", "logs/day_*"):
        assert found(source, tmp_path) == ["day_0.tsv", alone.name]
    named = "day_0.tsv.truth.parquet"
    assert found(f"logs/{named}", tmp_path) == [named]


def test_each_file_that_is_not_taken_is_named_with_its_reason(
    tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (logs / "_SUCCESS").touch()
    (logs / "a.md").touch()
    os.mkfifo(logs / "pipe.tsv")
    (logs / "gone.tsv").symlink_to(logs / "nowhere")
    (logs / "b\udcff.md").touch()
    collect(make_params(data__source="logs", data__until="day_2.tsv"), tmp_path)
    assert (
        "not taken: no regular file: 2 (gone.tsv, pipe.tsv); name begins with _ or .: 2 (.hidden,"
        " _SUCCESS); ending is not that of a log: 3 (a.md, b\\xff.md, notes.md); after data.until:"
        " 1 (day_10.tsv); see runs/not_taken.json"
    ) in capsys.readouterr().out
    assert read_json(tmp_path / NOT_TAKEN)["after data.until"] == ["day_10.tsv"]
    for path in logs.iterdir():
        if path.name.startswith("day"):
            path.unlink()
    with pytest.raises(
        DataError, match=r"no log found at 'logs', only files not taken: no regular file: 2"
    ):
        collect(make_params(data__source="logs"), tmp_path)


def test_endings_in_any_case(tmp_path: Path, logs: Path) -> None:
    (logs / "day_11.TSV").write_text(line())
    (logs / "day_12.Tsv.GZ").write_text(line())
    assert found("logs", tmp_path)[-2:] == ["day_11.TSV", "day_12.Tsv.GZ"]


def test_subfolders_are_read_in_natural_order_of_paths(tmp_path: Path) -> None:
    names_in_order = [
        "2025/12/31.tsv",
        "2026/1/9.tsv",
        "2026/1/10.tsv",
        "2026/2/1.tsv",
        "2026-b.tsv",
    ]
    for name in names_in_order:
        (tmp_path / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "logs" / name).write_text(f"{name}\n")
    (tmp_path / "logs" / "2026" / "again").symlink_to(tmp_path / "logs")  # no endless loop
    params = make_params(data__source="logs")
    collect(params, tmp_path)
    assert names(tmp_path) == names_in_order
    assert (tmp_path / RAW / "2026/1/9.tsv").read_text() == "2026/1/9.tsv\n"
    # The tree follows the source: files and folders disappear, and one takes the place of another.
    shutil.rmtree(tmp_path / "logs" / "2025")
    (tmp_path / "logs" / "2025").write_text("now a file\n")
    shutil.rmtree(tmp_path / "logs" / "2026" / "1")
    assert source_changed(params, tmp_path)
    collect(params, tmp_path)
    in_raw = [path for path in (tmp_path / RAW).rglob("*") if path.name != "manifest.json"]
    files = sorted(path.relative_to(tmp_path / RAW).as_posix() for path in in_raw if path.is_file())
    assert files == ["2025", "2026-b.tsv", "2026/2/1.tsv"]
    assert len([path for path in in_raw if path.is_dir()]) == 2
    assert not source_changed(params, tmp_path)


def test_a_pattern_keeps_the_folders_below_it(tmp_path: Path) -> None:
    for name in ("a/day_0.tsv", "b/day_0.tsv", "b/.trash/day_0.tsv"):
        (tmp_path / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "logs" / name).write_text(f"{name}\n")
    assert found("logs/**/day_0.tsv", tmp_path) == ["a/day_0.tsv", "b/day_0.tsv"]


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path: Path, logs: Path) -> None:
    logs.rename(tmp_path / "[l]ogs*")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "day_5.tsv").write_text(line() + "\n")
    for source in ("[l]ogs*/day_*.tsv", f"{tmp_path}/[l]ogs*/day_*.tsv", "[l]ogs*"):
        assert found(source, tmp_path) == ["day_0.tsv", "day_2.tsv", "day_10.tsv"]
    inside = found("day_*.tsv", tmp_path / "[l]ogs*")
    assert len(inside) == 3  # the folder of the repository has such a name


def test_home_in_the_source(tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("~/logs", "~/logs/day_*.tsv"):
        assert found(source, tmp_path / "elsewhere") == ["day_0.tsv", "day_2.tsv", "day_10.tsv"]
    with pytest.raises(DataError, match=r"at '\$HOME/logs' \(variables such as \$HOME are not"):
        found("$HOME/logs", tmp_path)


def test_the_manifest_of_an_earlier_version_leads_to_a_new_copy(tmp_path: Path, logs: Path) -> None:
    """Its logs were names."""
    params = make_params(data__source="logs")
    collect(params, tmp_path)
    artifact = Artifact.open(tmp_path / RAW)
    old_logs = [log["name"] for log in artifact.about["logs"]]
    write_manifest(tmp_path / RAW, {**artifact.about, "logs": old_logs})
    with pytest.raises(DataError, match="from another version"):
        RawManifest.read(tmp_path / RAW)
    collect(params, tmp_path)
    assert names(tmp_path) == ["day_0.tsv", "day_2.tsv", "day_10.tsv"]
