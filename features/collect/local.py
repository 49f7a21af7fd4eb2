"""Logs on this machine: a file, the files of a folder, or those that match a pattern."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from common.files import DataError, copy_with_sha256
from common.hashed_files import find_mismatch
from common.user_files import FoundFiles, find_files
from features.collect.discovery import (
    TABLE_FOLDERS,
    Discovery,
    FoundLog,
    partitions_of,
    refuse_table,
    select_logs,
    trailing_partitions,
)
from features.collect.manifest import RawFile
from features.schema.schema import Partitions


@dataclass(frozen=True)
class LocalLogs:
    """The logs that a path names.

    Attributes:
        folder: The folder that the names of the logs are relative to.
        discovery: The logs, and the files that are none.
    """

    folder: Path
    discovery: Discovery

    def path(self, log: FoundLog) -> Path:
        """The path of a log."""
        return self.folder / log.name

    @property
    def num_bytes(self) -> int:
        """The size of all logs."""
        return sum(self.path(log).stat().st_size for log in self.discovery.logs)

    def fingerprint(self, log: FoundLog) -> None:
        """Return None: a file has no version, it is compared itself."""

    def is_same(self, log: FoundLog, raw: Path, entry: RawFile) -> bool:
        """Return whether a log is the file that was copied to the folder `raw` as `entry`.

        Files are compared by size and modification time; where only the times differ, by content.
        """
        source, copy = self.path(log), raw / entry.name
        stat = source.stat()
        if not copy.is_file() or stat.st_size != entry.bytes or copy.stat().st_size != entry.bytes:
            return False
        if stat.st_mtime_ns == copy.stat().st_mtime_ns:
            return True
        # One of the two was written since: the source, or the copy, which may then be damaged.
        return all(
            find_mismatch(path.parent, {path.name: entry.sha256}) is None for path in (source, copy)
        )

    def prepare(self, wanted: Sequence[FoundLog]) -> None:
        """Do nothing: a file is copied when it is needed."""

    def finish(self) -> None:
        """Do nothing: nothing was prepared."""

    def fetch(self, log: FoundLog, target: Path) -> str:
        """Copy a log, and return its SHA-256 in hex.

        It is a copy and not a link, because DVC makes the files that it tracks read-only, and the
        original is the user's.
        """
        stat = self.path(log).stat()
        sha256 = copy_with_sha256(self.path(log), target)
        # With equal times, the next run need not read the file to see that it is the same.
        os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        return sha256


def find_local_logs(path: Path) -> LocalLogs:
    """Find the file at a path, the logs in the folder at it, or the files that match the pattern.

    A file that is named alone is a log, whatever it is called.

    Raises:
        DataError: See `select_logs`.
    """
    try:
        found = find_files(path)
    except PermissionError as error:
        raise DataError(f"{error.filename}: {error.strerror}; chmod or chown it") from None
    outer = _outer_partitions(found.folder)
    if found.kind == "file":
        return LocalLogs(found.folder, Discovery([FoundLog(path.name, None, outer)], {}))
    refuse_table(_table_files(found, len(outer)))
    by_ending = found.kind == "folder"
    discovery = select_logs(
        found.names, by_ending=by_ending, outer=outer, not_files=found.not_files
    )
    return LocalLogs(found.folder, discovery)


def _outer_partitions(folder: Path) -> Partitions:
    """Return the partitions that a folder and the folders above it state, without a gap."""
    return partitions_of(trailing_partitions(folder.absolute().parts))


def _table_files(found: FoundFiles, num_outer: int) -> Iterator[str]:
    """Yield the files by which a table that contains the found files would record them."""
    folders = [found.folder, *found.folder.absolute().parents[: num_outer + 1]]
    if found.kind == "pattern":  # of a folder, the names of all files are known
        below = {folder for name in found.names for folder in PurePosixPath(name).parents}
        folders += [found.folder / folder for folder in sorted(below)]
    for folder in folders:
        for name in TABLE_FOLDERS:
            if (folder / name).is_dir():
                yield from map(str, (folder / name).iterdir())
