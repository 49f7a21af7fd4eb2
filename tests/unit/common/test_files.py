"""`replaced` leaves complete files only: after success, an error, a kill and a full disk."""

import hashlib
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from common.artifact import DamageError
from common.config.loading import ConfigError
from common.files import (
    DataError,
    copy_with_sha256,
    read_json,
    replaced,
    sha256_file,
    write_json,
)
from features.ingest.readers.blocks import NoRowsError
from features.ingest.shard import TooManyBadRowsError
from training.loop.checkpoint import CheckpointError


class StopError(Exception):
    """An error that a test raises."""


def names(directory: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return sorted(path.name for path in directory.iterdir())


def test_the_new_file_takes_the_place_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with replaced(target) as scratch:
        scratch.write_text("new")
        assert scratch.parent == target.parent
        assert not target.exists()
    assert (target.read_text(), names(target.parent)) == ("new", ["file.txt"])


def test_an_old_file_stays_readable_until_the_end(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with replaced(target) as scratch:
        scratch.write_text("new")
        assert target.read_text() == "old"
    assert (target.read_text(), names(tmp_path)) == ("new", ["file.txt"])


@pytest.mark.parametrize("kind", [StopError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    def fail() -> None:
        with replaced(tmp_path / "file.txt") as scratch:
            scratch.write_text("half")
            raise kind

    with pytest.raises(kind):
        fail()
    assert names(tmp_path) == []


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with replaced(target) as scratch:
            scratch.write_text("half")
            raise StopError

    with pytest.raises(StopError):
        fail()
    assert (target.read_text(), names(tmp_path)) == ("old", ["file.txt"])


def test_nothing_written_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), replaced(target):
        pass
    assert target.read_text() == "old"


def test_a_directory_is_swapped_whole(tmp_path: Path) -> None:
    target = tmp_path / "state"
    (target / "inner").mkdir(parents=True)
    (target / "inner" / "old.txt").write_text("old")
    with replaced(target) as scratch:
        scratch.mkdir()
        (scratch / "new.txt").write_text("new")
        assert (target / "inner" / "old.txt").read_text() == "old"
    assert (names(tmp_path), names(target)) == (["state"], ["new.txt"])


def test_a_failure_keeps_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "state"
    target.mkdir()
    (target / "old.txt").write_text("old")

    def fail() -> None:
        with replaced(target) as scratch:
            scratch.mkdir()
            (scratch / "new.txt").write_text("half")
            raise StopError

    with pytest.raises(StopError):
        fail()
    assert (names(tmp_path), names(target)) == (["state"], ["old.txt"])


def child(code: str, *args: Path) -> subprocess.CompletedProcess[str]:
    """Run code in another process."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True
    )


def test_the_next_process_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "state"
    code = """if True:
        import os, signal, sys, pathlib
        from common.files import replaced
        with replaced(pathlib.Path(sys.argv[1])) as scratch:
            scratch.mkdir()
            (scratch / "stale.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert child(code, target).returncode == -9
    assert not target.exists()
    with replaced(target) as scratch:
        scratch.mkdir()
        (scratch / "new.txt").write_text("new")
    assert (names(tmp_path), names(target)) == (["state"], ["new.txt"])


FULL_DISK = """if True:
    import pathlib, resource, sys
    from common.files import copy_with_sha256, replaced, write_json
    target, source = map(pathlib.Path, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        {write}
    except Exception as error:  # Polars raises an error class of its own
        print(error)
        sys.exit(3)
"""
WRITES = {
    "json": "write_json(target, ['x' * 99] * 10_000)",
    "copy": "with replaced(target) as scratch: copy_with_sha256(source, scratch)",
    "parquet": (
        "import polars as pl\n"
        "        frame = pl.DataFrame({'x': range(10**6)})\n"
        "        with replaced(target) as scratch: frame.write_parquet(scratch)"
    ),
}


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("write", WRITES)
def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, write: str, old: str | None) -> None:
    """A limit on the size of files has the effect of a full disk: the write fails part-way."""
    source, target = tmp_path / "source", tmp_path / "out" / "target"
    source.write_bytes(bytes(1_000_000))
    target.parent.mkdir()
    if old:
        target.write_text(old)
    result = child(FULL_DISK.format(write=WRITES[write]), target, source)
    assert (result.returncode, "File too large" in result.stdout) == (3, True), result.stderr
    assert names(target.parent) == (["target"] if old else [])
    assert not old or target.read_text() == old


def test_json_is_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "ä"})
    write_json(tmp_path / "b.json", {"a": "ä", "b": 1})
    assert (
        (tmp_path / "a.json").read_bytes()
        == (tmp_path / "b.json").read_bytes()
        == '{\n  "a": "ä",\n  "b": 1\n}\n'.encode()
    )
    assert read_json(tmp_path / "a.json") == {"a": "ä", "b": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}])
def test_values_that_json_does_not_have_are_not_written(tmp_path: Path, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", [value])
    assert names(tmp_path) == []


def test_missing_and_broken_json_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.json not found; run the stage that makes it"):
        read_json(path)
    path.write_text('{"a": ')
    with pytest.raises(
        DataError, match=r"a\.json is not JSON .*; remove it and run its stage again"
    ):
        read_json(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 200_000, "recursion"),
        ("[NaN]", "NaN is no finite number"),
        ("[-Infinity]", "-Infinity is no finite number"),
        ("[1e999]", "1e999 is no finite number"),
        ("9" * 5000, "5000 digits"),
        ('"\\ud800"', "surrogates not allowed"),
        ("{}{}", "Extra data"),
        ("", "Expecting value"),
    ],
    ids=range(8),
)
def test_odd_json_is_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(
        DataError, match=rf"a\.json is not JSON \(.*{reason}.*\); do this$"
    ) as error:
        read_json(path, "do this")
    assert str(error.value).isprintable()


def test_json_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, reason in (
        ("bytes", "is not JSON .*0xff"),
        ("folder", "is a folder, not a file; remove it"),
        ("pipe", "is a named pipe, not a file; remove it"),  # it must not wait for a writer
        ("loop", "cannot be read .*symbolic links"),
        ("bytes/a.json", "cannot be read .*Not a directory"),
        ("x" * 300, "cannot be read .*name too long"),
    ):
        with pytest.raises(DataError, match=rf"{name} {reason}"):
            read_json(tmp_path / name)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_json_without_the_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.json").chmod(0)
    with pytest.raises(DataError, match=r"a\.json cannot be read \(Permission denied\)"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("num_bytes", [0, 1, (1 << 20) + 1])
def test_sha256_of_a_file_and_of_a_copy(tmp_path: Path, num_bytes: int) -> None:
    content = bytes(i % 251 for i in range(num_bytes))
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert sha256_file(source) == copy_with_sha256(source, target) == digest
    assert target.read_bytes() == content


@pytest.mark.parametrize("fails", [True, False])
def test_a_folder_that_a_killed_run_moved_aside_comes_back(tmp_path: Path, fails: bool) -> None:
    """If a process is killed between the two renames, neither folder is in its place."""
    aside, target = tmp_path / ".parquet.old.tmp", tmp_path / "parquet"
    aside.mkdir()
    (aside / "shard").write_text("kept")
    if fails:
        with pytest.raises(FileNotFoundError), replaced(target):
            pass  # the caller writes nothing
        assert (target / "shard").read_text() == "kept"
    else:
        with replaced(target) as scratch:
            scratch.mkdir()
        assert not list(target.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["parquet"]


@pytest.mark.parametrize(
    "error",
    [
        DataError("one", "two"),
        DamageError(Path("artifacts/raw/x"), "is damaged"),
        CheckpointError("last.pt: damaged", Path("runs/checkpoints/1")),
        TooManyBadRowsError("too many"),
        NoRowsError("none"),
        ConfigError("params.yaml: wrong"),
    ],
)
def test_an_error_of_a_worker_is_the_same_in_the_process_that_asked(error: Exception) -> None:
    """Workers of a pool and of a Dask cluster send their errors as pickles."""
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)
