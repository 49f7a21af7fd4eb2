"""The place in which the machines of a run give each other files.

It is a folder that all of them see under the same path, or a prefix in an object store. A file is
there as a whole or not at all, and a job that runs twice leaves the same file.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, cast

from common.artifact import Artifact, ListedFile, check_file, state_of
from common.files import DataError, remove
from common.logs import get_logger
from common.masking import mask_passwords
from features.encode.days import Day
from features.object_store import open_store, shard_in_store

log = get_logger("features")


class Exchange(ABC):
    """The place in which the machines of a run give each other files, by name."""

    @abstractmethod
    def work_folder(self) -> AbstractContextManager[Path]:
        """Return a new folder of this machine, which is removed when the block ends."""

    @abstractmethod
    def put(self, path: Path, name: str) -> None:
        """Move a file of a work folder into the exchange."""

    @abstractmethod
    def get(self, name: str, path: Path, listed: ListedFile | None = None) -> None:
        """Move a file of the exchange to a path of this machine.

        Args:
            name: Its name in the exchange.
            path: The path, in the project folder.
            listed: The checksums of the file, to check a copy of it.

        Raises:
            DamageError: A copy has other bytes.
        """

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open a file of the exchange for reading."""

    @abstractmethod
    def share(self, path: Path, name: str) -> str:
        """Make a file of this machine readable for all machines.

        Args:
            path: The file.
            name: The name that it gets if it has to be copied.

        Returns:
            Its name in the exchange.
        """

    @abstractmethod
    def share_days(self, days: list[Day]) -> None:
        """Make the shards of some days readable for all machines."""

    @abstractmethod
    def local_day(self, day: Day, folder: Path) -> Day:
        """Return the day with shards that this machine can read.

        Args:
            day: A day whose shards were shared.
            folder: A work folder, for shards that have to be copied.
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove all files of the run."""


@dataclass(frozen=True)
class FolderExchange(Exchange):
    """A folder that all machines see under the same path, and with it the project folder.

    Attributes:
        folder: Its absolute path.
    """

    folder: Path

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """Yield a folder inside the exchange, from which files are moved without a copy."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.folder, prefix=".work-") as folder:
            yield Path(folder)

    def put(self, path: Path, name: str) -> None:
        """Rename a file."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.replace(self.folder / name)

    def get(self, name: str, path: Path, listed: ListedFile | None = None) -> None:
        """Rename a file."""
        (self.folder / name).replace(path)

    def open(self, name: str) -> IO[bytes]:
        """Open a file; `name` may be an absolute path."""
        return (self.folder / name).open("rb")

    def share(self, path: Path, name: str) -> str:
        """Return the path, which all machines see."""
        return str(path.absolute())

    def share_days(self, days: list[Day]) -> None:
        """Do nothing: all machines see artifacts/parquet."""

    def local_day(self, day: Day, folder: Path) -> Day:
        """Return the day. A process checks the bytes of a shard once, not for each job."""
        files = tuple(sorted(day.parquet.files.items()))
        states = tuple(state_of(day.parquet.folder / name) for name, _ in files)
        return replace(day, parquet=_opened(day.parquet.folder, files, states))

    def remove(self) -> None:
        """Remove the folder."""
        remove(self.folder)


@lru_cache(maxsize=1024)
def _opened(
    folder: Path,
    files: tuple[tuple[str, ListedFile], ...],
    states: tuple[tuple[int, ...] | None, ...],
) -> Artifact:
    """Return shards of artifacts/parquet; they are checked again if the state of a file changes."""
    return Artifact(folder, dict(files), {})


@dataclass(frozen=True)
class StoreExchange(Exchange):
    """A prefix in an object store, such as s3://BUCKET/PREFIX.

    The shards stay in the store for later runs; everything else is removed after the run.

    Attributes:
        url: The storage that the machines share.
        run: The name of the run in it.
    """

    url: str
    run: str

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """Yield a temporary folder."""
        with TemporaryDirectory(prefix="clickmill-") as folder:
            yield Path(folder)

    def put(self, path: Path, name: str) -> None:
        """Upload a file."""
        self._upload(path, f"{self.run}/{name}")
        path.unlink()

    def get(self, name: str, path: Path, listed: ListedFile | None = None) -> None:
        """Download a file and remove it from the store."""
        store, prefix = open_store(self.url)
        remote = f"{prefix}/{self.run}/{name}"
        store.get_file(remote, str(path))
        if listed:
            check_file(path, listed)
        store.rm_file(remote)

    def open(self, name: str) -> IO[bytes]:
        """Open a file in the store, of which only the parts that are read are downloaded."""
        store, prefix = open_store(self.url)
        return cast(IO[bytes], store.open(f"{prefix}/{self.run}/{name}", "rb"))

    def share(self, path: Path, name: str) -> str:
        """Upload a file."""
        self._upload(path, f"{self.run}/{name}")
        return name

    def share_days(self, days: list[Day]) -> None:
        """Upload the shards that are not in the store yet."""
        store, prefix = open_store(self.url)
        shards = {part.sha256: (day, part.shard) for day in days for part in day.parts}
        for sha256, (day, shard) in shards.items():
            name, listed = shard_in_store(sha256), day.parquet.files[shard]
            try:
                is_there = store.size(f"{prefix}/{name}") == listed.bytes
            except FileNotFoundError:
                is_there = False
            if not is_there:
                log.info(f"{shard} to {self.url}, {listed.bytes:,} bytes")
                self._upload(day.parquet.path(shard), name)

    def local_day(self, day: Day, folder: Path) -> Day:
        """Download the shards of a day; their bytes are checked when they are read."""
        store, prefix = open_store(self.url)
        for part in day.parts:
            path = folder / part.shard
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    store.get_file(f"{prefix}/{shard_in_store(part.sha256)}", str(path))
                except FileNotFoundError:
                    raise DataError(
                        f"{self.url}/{shard_in_store(part.sha256)} was removed while the features"
                        " stage ran; run it again, which uploads it"
                    ) from None
        return replace(day, parquet=Artifact(folder, day.parquet.files, {}))

    def remove(self) -> None:
        """Remove the files of the run."""
        store, prefix = open_store(self.url)
        if store.exists(f"{prefix}/{self.run}"):
            store.rm(f"{prefix}/{self.run}", recursive=True)

    def _upload(self, path: Path, name: str) -> None:
        store, prefix = open_store(self.url)
        try:
            store.put_file(str(path), f"{prefix}/{name}")
        except Exception as error:  # each kind of store raises its own exceptions
            raise ConnectionError(
                f"dask.shared_storage is {self.url}, where nothing can be written: "
                f"{mask_passwords(str(error))}"
            ) from None
