"""The artifact of a stage: a folder with a manifest, and the one way to open its files.

The manifest, manifest.json, lists every other file of the folder with its size and its checksums.
Whoever reads a file of an artifact asks `Artifact.path` for it. That checks the file first, so a
damaged or missing file is never read, and a file that is not listed is never found.

manifest.json has the keys

    files     name -> {"bytes": size, "crc32": number, "sha256": hex}; the names are relative to the
              folder. The SHA-256 says which contents they are, the CRC-32 whether they are damaged.
    about     what else the stage records about the files
    sha256    the SHA-256 of the two above, so that damage to the manifest is noticed too

A check reads the file once and computes its CRC-32, because a SHA-256 would take over 3 % of a
stage (benchmarks/README.md, "Checked artifacts").
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Self

from isal import isal_zlib

from common.checked_json import is_as_written, write_checked_json
from common.files import DataError, crc32_file, read_json, sha256_file
from common.layout import EVALUATION, FEATURES, PARQUET, RAW
from common.logs import get_logger

MANIFEST = "manifest.json"
STAGE_OF_FOLDER = {
    RAW.name: "collect",
    PARQUET.name: "ingest",
    FEATURES.name: "features",
    EVALUATION.name: "evaluate",
}
NUM_THREADS = 4  # that read and hash files
SMALL_FILE_BYTES = 1 << 20  # checked faster than a thread would start


class DamageError(DataError):
    """A file of an artifact is not as it was written. The message names the remedy.

    The file is to be removed before the stage runs again, because DVC looks at times and sizes
    first. The stage reuses the files that are whole.

    Attributes:
        fault: What is wrong, without the remedy.
    """

    def __init__(self, path: Path, fault: str) -> None:
        self.fault = f"{path} {fault}"
        names = [parent.name for parent in path.parents]
        stages = [STAGE_OF_FOLDER[name] for name in names if name in STAGE_OF_FOLDER]
        stage = f"the stage {stages[0]}" if stages else "the stage that makes it"
        remove_it = "remove it and " if os.path.lexists(path) else ""
        super().__init__(f"{self.fault}; {remove_it}run {stage} again (clickmill run)")


@dataclass(frozen=True)
class ListedFile:
    """A file of an artifact, as the manifest lists it.

    Attributes:
        bytes: Its size in bytes.
        crc32: The CRC-32 of its bytes.
        sha256: The SHA-256 of its bytes, in hex.
    """

    bytes: int
    crc32: int
    sha256: str

    @classmethod
    def of(cls, path: Path, sha256: str | None = None) -> "ListedFile":
        """Describe a file as it is.

        Args:
            path: The file.
            sha256: Its SHA-256, if it is known already.
        """
        num_bytes = path.stat().st_size
        if num_bytes < SMALL_FILE_BYTES:
            return listed_as(path.read_bytes(), sha256)
        return cls(num_bytes, crc32_file(path), sha256 or sha256_file(path))


def listed_as(contents: bytes, sha256: str | None = None) -> ListedFile:
    """Describe a file that has these bytes; the arguments are those of `ListedFile.of`."""
    digest = sha256 or hashlib.sha256(contents).hexdigest()
    return ListedFile(len(contents), isal_zlib.crc32(contents), digest)


class Artifact:
    """The artifact of a stage.

    Attributes:
        folder: Its folder.
        files: Every file of the artifact except the manifest, by name.
        about: What the stage recorded about the files.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[str, ListedFile],
        about: Mapping[str, Any],
        *,
        is_checked: bool = False,
    ) -> None:
        self.folder, self.files, self.about = folder, files, about
        self._is_checked = is_checked
        self._locks = {name: Lock() for name in files}
        self._states: dict[str, tuple[int, ...] | None] = {}  # of the files when they were checked

    def __reduce__(self) -> Any:
        # Another process or machine checks the files itself.
        return partial(type(self), is_checked=self._is_checked), (
            self.folder,
            self.files,
            self.about,
        )

    @classmethod
    def open(cls, folder: Path, *, is_checked: bool = False) -> Self:
        """Read the manifest of a folder.

        Args:
            folder: The folder.
            is_checked: Whether another process of this run has checked the files already.

        Raises:
            DataError: There is no manifest.
            DamageError: The manifest is damaged.
        """
        path = folder / MANIFEST
        try:
            manifest = read_json(path)
        except DataError:
            if not path.is_file():
                raise
            raise DamageError(path, "is damaged: it is not JSON") from None
        try:
            is_whole, about = is_as_written(path, manifest), manifest["about"]
            files = {name: ListedFile(**listed) for name, listed in manifest["files"].items()}
        except (TypeError, KeyError, AttributeError):
            is_whole = False
        if not is_whole:
            raise DamageError(path, "is damaged, or from another version of clickmill")
        return cls(folder, files, about, is_checked=is_checked)

    @classmethod
    def open_of_last_run(cls, folder: Path) -> Self | None:
        """Open what the last run of a stage left, so that the stage can reuse files of it.

        Returns:
            The artifact; None if there is none, or if its manifest is damaged, which is logged.
        """
        if not (folder / MANIFEST).exists():
            return None
        try:
            return cls.open(folder)
        except DamageError as error:
            stage = STAGE_OF_FOLDER.get(folder.name, folder.name)
            get_logger(stage).warning(f"{error.fault}; nothing of the last run is reused")
            return None

    @property
    def manifest_path(self) -> Path:
        """The path of the manifest."""
        return self.folder / MANIFEST

    def names(self, subfolder: str) -> list[str]:
        """Return the sorted names of the files in a subfolder, at any depth."""
        return sorted(name for name in self.files if name.startswith(f"{subfolder}/"))

    def path(self, name: str) -> Path:
        """Return the path of a file, after its bytes were checked. Threads may call this.

        Raises:
            DamageError: The file is not listed, is missing, or has other bytes than were written.
        """
        if name not in self.files:
            raise DamageError(self.manifest_path, f"is damaged: it does not list {name}")
        with self._locks[name]:
            if name not in self._states:
                state = state_of(self.folder / name)
                if not self._is_checked:
                    check_file(self.folder / name, self.files[name])
                self._states[name] = state
        return self.folder / name

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Check, when the block ends, that the files that `path` has given are what they were then.

        A stage reads its inputs in such a block, which ends before its output takes its place. Only
        a file that somebody has written to, linked or replaced since is read again.

        Raises:
            DamageError: See `path`. It comes before an error of the block, whose cause it may be.
        """
        try:
            yield
        finally:
            for name, state in self._states.items():
                if state_of(self.folder / name) != state:
                    check_file(self.folder / name, self.files[name])

    def paths(self, names: Iterable[str]) -> list[Path]:
        """Return the paths of files, after threads have checked them.

        Raises:
            DamageError: See `path`.
        """
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            return list(threads.map(self.path, names))

    def paths_in(self, subfolder: str) -> list[Path]:
        """Return the paths of the files in a subfolder, after threads have checked them.

        Raises:
            DamageError: See `path`.
        """
        return self.paths(self.names(subfolder))

    def read_json(self, name: str) -> Any:
        """Return the value in a JSON file of the artifact.

        Raises:
            DamageError: See `path`.
        """
        return read_json(self.path(name))

    def is_whole(self, name: str) -> bool:
        """Return whether a file is listed, and has the bytes that were written."""
        try:
            self.path(name)
        except DataError:
            return False
        return True


def write_manifest(
    folder: Path, about: Mapping[str, Any], known: Mapping[str, ListedFile] | None = None
) -> None:
    """Write the manifest of a folder, which lists all of its files.

    Args:
        folder: The folder. It has everything that belongs to the artifact, and nothing else.
        about: What else to record about the files; the caller's own keys.
        known: Files that are described already, by name; the others are read here.
    """
    known = known or {}
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            files[name] = asdict(known.get(name) or ListedFile.of(path))
    write_checked_json(folder / MANIFEST, {"files": files, "about": dict(about)})


def check_file(path: Path, listed: ListedFile) -> None:
    """Check that a file has the bytes that were written.

    Raises:
        DamageError: It is missing, or has another size or checksum.
    """
    if not path.is_file():
        raise DamageError(path, "is missing, or is not a file")
    num_bytes = path.stat().st_size
    if num_bytes != listed.bytes:
        raise DamageError(
            path, f"is damaged: {num_bytes:,} bytes found, {listed.bytes:,} were written"
        )
    crc32 = crc32_file(path)
    if crc32 != listed.crc32:
        raise DamageError(
            path, f"is damaged: its CRC-32 is {crc32:08x}, {listed.crc32:08x} was written"
        )


@contextmanager
def checked_meanwhile(path: Path, listed: ListedFile) -> Iterator[None]:
    """Check a file while the block reads it: in a thread, or before that if it is small.

    A file that somebody writes to meanwhile is checked once more, because the thread may have read
    the old bytes and the block the new ones.

    Raises:
        DamageError: See `check_file`. It comes before an error of the block, whose cause it may be.
    """
    state = state_of(path)
    is_small = listed.bytes < SMALL_FILE_BYTES
    if is_small:
        check_file(path, listed)
    with ThreadPoolExecutor(1) as thread:
        check = None if is_small else thread.submit(check_file, path, listed)
        try:
            yield
        finally:
            if check:
                check.result()
            if state_of(path) != state:
                check_file(path, listed)


def state_of(path: Path) -> tuple[int, ...] | None:
    """Return numbers of which at least one changes when a file is written to; None without a file.

    A program can set the modification time back, but not the time of the last change (ctime).
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
