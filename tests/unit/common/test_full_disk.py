"""A full disk is named by one line, however a library reports it."""

import errno
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from common.files import DataError, replaced, write_json
from common.full_disk import find_full_disk
from flows.git_commands import Git, GitError
from tests.factories.support import ROOT

NUMBERS = np.random.default_rng(0).normal(size=200_000)  # 1.6 MB
KB = 1024


def nested(error: BaseException) -> BaseException:
    """Return an error that was caused by another one, which was caused by `error`."""
    try:
        try:
            raise error
        except BaseException as inner:
            raise ValueError("in between") from inner
    except ValueError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space", "/a/b"), "No space left on device: /a/b; free space on"),
        (OSError(errno.EDQUOT, "quota", "/a/b"), "Disk quota exceeded: /a/b; free space, or ask"),
        (OSError(errno.EFBIG, "size", "/a/b"), r"File too large: /a/b; raise .*\(ulimit -f\)"),
        (nested(OSError(errno.ENOSPC, "No space", "/a/b")), "No space left on device: /a/b; free"),
        (
            sqlite3.OperationalError("database or disk is full"),
            "No space left on device: database or disk is full; free",
        ),
        (
            pl.exceptions.ComputeError("while writing\nNo space left on device (os error 28)"),
            r"No space left on device: No space left on device \(os error 28\); free",
        ),
        (
            ExceptionGroup("two", [ValueError("one"), OSError(errno.ENOSPC, "No space", "/a/b")]),
            "No space left on device: /a/b; free",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_of_a_full_disk(error: BaseException, line: str) -> None:

    full = find_full_disk(error)
    assert full is not None
    assert re.match(line, str(full)), full
    assert len(str(full).splitlines()) == 1
    again = find_full_disk(nested(full))
    assert str(again) == str(full)


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied", "/a"), ValueError("x"), DataError("y")]
)
def test_other_errors_are_not(error: BaseException) -> None:
    assert find_full_disk(error) is None


def to_torch(path: Path) -> None:
    torch.save({"numbers": torch.from_numpy(NUMBERS)}, path)


def to_safetensors(path: Path) -> None:
    save_file({"numbers": NUMBERS}, path)


def to_polars(path: Path) -> None:
    pl.DataFrame({"numbers": NUMBERS}).write_parquet(path)


def to_pyarrow(path: Path) -> None:
    pq.write_table(pa.table({"numbers": NUMBERS}), path)


def to_file(path: Path) -> None:
    path.write_bytes(NUMBERS.tobytes())


def to_folder(path: Path) -> None:
    path.mkdir()
    to_torch(path / "inside")


WRITERS: list[Callable[[Path], None]] = [
    to_torch,
    to_safetensors,
    to_polars,
    to_pyarrow,
    to_file,
    to_folder,
]
TRY = """
import resource
import sys
from pathlib import Path
from common.files import replaced
from common.full_disk import FullDiskError
from tests.unit.common import test_full_disk
path, *limits = sys.argv[1:]
for limit in limits or [-1]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), -1))
    for writer in test_full_disk.WRITERS:
        try:
            with replaced(Path(path)) as scratch:
                writer(scratch)
        except FullDiskError as error:
            print(writer.__name__, error)
"""


def lines_of(path: Path, *limits: int) -> list[str]:
    """Write a file with each library in a process, and return the errors that were raised.

    Args:
        path: The file.
        limits: The limits of file sizes, in bytes, that are set one after the other; none if there
            is no limit.
    """
    run = subprocess.run(
        [sys.executable, "-c", TRY, path, *map(str, limits)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_a_limit_of_file_sizes_is_named_whoever_writes(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    limits = (1 * KB, 20 * KB, 1100 * KB)
    lines = lines_of(path, *limits)
    names = [writer.__name__ for writer in WRITERS] * len(limits)
    assert [line.split()[0] for line in lines] == names
    for line in lines:
        assert f"File too large: {path}; raise the limit" in line
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert path.read_text() == "before"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a file system of a known size")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_named_whoever_writes(small_disk: Path) -> None:
    path = small_disk / "out"
    path.write_text("before")
    lines = lines_of(path)
    assert [line.split()[0] for line in lines] == [writer.__name__ for writer in WRITERS]
    for line in lines:
        assert f"No space left on device: {path}; free space" in line
    assert [file.name for file in small_disk.iterdir()] == ["out"]
    assert path.read_text() == "before"


def test_git_on_a_full_disk(small_disk: Path) -> None:
    git = Git(small_disk)
    git.run("init", "-q")
    (small_disk / "large").write_bytes(NUMBERS.tobytes()[: 900 * KB])
    with pytest.raises(GitError) as raised:
        git.run("add", "large")
    full = find_full_disk(raised.value)
    assert full is not None, raised.value
    assert str(full).startswith("No space left on device: ")


def test_other_errors_of_a_writer_are_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nan"), replaced(tmp_path / "out"):
        raise ValueError("nan")
    with pytest.raises(DataError, match="row"), replaced(tmp_path / "out"):
        raise DataError("row")
    with pytest.raises(TypeError):
        write_json(tmp_path / "out", object())
