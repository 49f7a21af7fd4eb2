"""The logs that `clickmill predict` reads: files, folders, glob patterns and pipes."""

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO

from common.files import CHUNK_BYTES, DataError
from common.logs import get_logger
from common.user_files import (
    STDIN,
    STDIO,
    expand_home,
    find_same_file,
    open_descriptor,
    path_as_text,
    variable_hint,
)
from features.collect.discovery import SUFFIXES
from features.collect.local import find_local_logs
from features.schema.schema import Partitions

log = get_logger("predict")


@dataclass(frozen=True)
class InputLog:
    """A log to be scored.

    Attributes:
        name: The path as the user gave it, or that of a file in the user's folder. Bytes that are
            not UTF-8 are escaped.
        path: Where it is read: for a pipe, the temporary copy.
        num_bytes: Its size.
        partitions: The values of columns that its folders give.
    """

    name: str
    path: Path
    num_bytes: int
    partitions: Partitions = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """The inputs that the user named.

    Attributes:
        partitions: The files and pipes with the values of columns that their folders give; those of
            a folder or pattern in time order, as for training.
        are_several: Whether there may be more than one file, so that scores say which.
    """

    partitions: dict[Path, Partitions]
    are_several: bool

    @property
    def paths(self) -> list[Path]:
        """The files and pipes."""
        return list(self.partitions)

    @contextmanager
    def open(self) -> Iterator[list[InputLog]]:
        """Open the logs; pipes are copied to temporary files, which disappear in any case."""
        with ExitStack() as stack:
            yield [self._open(path, stack) for path in self.paths]

    def _open(self, path: Path, stack: ExitStack) -> InputLog:
        name = path_as_text(path)
        if path.is_file() and open_descriptor(path) is None:
            return InputLog(name, path, path.stat().st_size, self.partitions[path])
        if path == STDIO:
            name = "standard input"
        copy = stack.enter_context(TemporaryFile(prefix="clickmill-"))  # noqa: SIM115
        with _open_pipe(path) as pipe:
            _copy_bounded(pipe, copy, name)
        return InputLog(name, Path(f"/proc/self/fd/{copy.fileno()}"), copy.tell())


def find_inputs(named: Sequence[Path]) -> Inputs:
    """Find the logs that the user named.

    Args:
        named: Files, folders of logs, glob patterns, pipes, or `-` for standard input.

    Raises:
        DataError: There is no such file, a folder or a pattern has no logs, a file is named twice,
            or it is a device.
    """
    paths: list[Path] = []
    partitions: dict[Path, Partitions] = {}
    are_several = len(named) > 1
    for path in map(expand_home, named):
        if _is_pipe(path):
            paths.append(path)
            partitions[path] = {}
            continue
        try:
            found = find_local_logs(path)
        except DataError as error:
            raise DataError(f"--input {path}: {error}") from None
        not_taken = found.discovery.describe_not_taken()
        if path.is_dir() and not found.discovery.logs:
            suffixes = f"with no suffix or {', '.join(SUFFIXES[1:])}"
            others = f", only files not taken: {not_taken}" if not_taken else ""
            raise DataError(f"--input {path}: no log in this folder ({suffixes}){others}")
        if not found.discovery.logs:
            raise DataError(f"--input {path}: no such file{variable_hint(path)}")
        if not_taken:
            log.info(f"--input {path}: not taken: {not_taken}")
        are_several |= not path.is_file()
        for one in found.discovery.logs:
            place = path if path.is_file() else found.path(one)
            paths.append(place)
            partitions[place] = one.partitions
    if same := find_same_file(paths):
        first, second = same
        raise DataError(
            f"--input {second}: this file is named twice ({first}); its rows would be scored twice"
        )
    return Inputs(partitions, are_several)


def _is_pipe(path: Path) -> bool:
    """Return whether a path is read once from front to back: a pipe, a terminal or an open file."""
    descriptor = STDIN if path == STDIO else open_descriptor(path)
    try:
        mode = (path.stat() if descriptor is None else os.fstat(descriptor)).st_mode
    except OSError:
        return False
    if stat.S_ISFIFO(mode) or (descriptor is not None and os.isatty(descriptor)):
        return True
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return descriptor is not None
    raise DataError(f"--input {path}: a file, a folder or a pipe expected, found a device")


def _open_pipe(path: Path) -> IO[bytes]:
    descriptor = STDIN if path == STDIO else open_descriptor(path)
    return path.open("rb") if descriptor is None else os.fdopen(os.dup(descriptor), "rb")


def _copy_bounded(pipe: IO[bytes], copy: IO[bytes], name: str) -> None:
    """Copy a pipe, because a log is read twice, and Parquet not from front to back.

    Raises:
        DataError: The pipe has more than half of the bytes that are free for temporary files.
    """
    limit = shutil.disk_usage(gettempdir()).free // 2
    while chunk := pipe.read(CHUNK_BYTES):
        if copy.tell() + len(chunk) > limit:
            raise DataError(
                f"{name}: more than {limit:,} bytes, half of what is free in {gettempdir()}; "
                "write it to a file and name that, or set TMPDIR to a larger folder"
            )
        copy.write(chunk)
    copy.flush()
