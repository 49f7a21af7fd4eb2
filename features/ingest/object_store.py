"""Shared storage for machines without a common folder: S3, or another store that fsspec knows.

The machine that asks uploads a log; a worker reads it and uploads the shard; the asking machine
downloads the shard. In the store, URL/KEY/ contains the log, its bad rows and the record of its
shard; the shard itself is URL/shards/SHA256.parquet, where it stays for the features stage. A shard
counts only if its record is there, which is uploaded last.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.checked_json import parse_checked_json
from common.files import DataError
from common.hashed_files import find_mismatch
from common.logs import get_logger
from common.masking import mask_passwords
from features.ingest.readers.row_validation import BAD_ROWS_FILE
from features.ingest.shard import (
    RECORD_FILE,
    SHARD_FILE,
    Job,
    ReportProgress,
    Shard,
    find_shard,
    ingest_file,
    new_shard_dir,
)
from features.object_store import open_store, shard_in_store

log = get_logger("ingest")

LOG_FILE = "log"


@dataclass(frozen=True)
class ObjectStore:
    """The shared storage at a URL, such as s3://BUCKET/PREFIX (`dask.shared_storage`)."""

    url: str

    def __post_init__(self) -> None:
        open_store(self.url)  # which refuses a URL with a password

    def upload_log(self, job: Job) -> None:
        """Upload a log, unless the log or its shard is already in the store.

        Raises:
            ConnectionError: Nothing can be written to the store.
        """
        filesystem, folder = self._location(job)
        remote_log = f"{folder}/{LOG_FILE}"
        try:
            if self.find_shard(job):
                return
            if filesystem.exists(remote_log) and filesystem.size(remote_log) == job.num_bytes:
                return
            log.info(f"{job.name} to {self.url}, {job.num_bytes:,} bytes")
            filesystem.put_file(str(job.source), remote_log)
        except Exception as error:  # each kind of store raises its own exceptions
            raise ConnectionError(
                f"dask.shared_storage is {self.url}, where nothing can be written: "
                f"{mask_passwords(str(error))}"
            ) from None

    def find_shard(self, job: Job) -> Shard | None:
        """Return the shard of a log if it is in the store.

        If its record is damaged, or its file was removed, it is taken for absent, and the log is
        read again.
        """
        filesystem, folder = self._location(job)
        try:
            record = parse_checked_json(filesystem.cat_file(f"{folder}/{RECORD_FILE}"))
        except FileNotFoundError:
            return None
        shard = Shard(**record["shard"]) if record else None
        return shard if shard and filesystem.exists(self._shard_path(shard)) else None

    def ingest_log(self, job: Job, report: ReportProgress, scratch: Path) -> Shard:
        """Download a log, convert it to a shard and upload the shard.

        Args:
            job: The log.
            report: Receives the progress.
            scratch: A folder of this machine with space for the log and its shard.

        Raises:
            DataError: The log in the store is not the one that was uploaded, or is not a log.
        """
        filesystem, folder = self._location(job)
        with TemporaryDirectory(dir=scratch, prefix="clickmill-") as temporary:
            local_job = replace(
                job,
                source=Path(temporary) / job.source.name,
                shards_dir=Path(temporary) / "parts",
            )
            filesystem.get_file(f"{folder}/{LOG_FILE}", str(local_job.source))
            if find_mismatch(local_job.source.parent, {local_job.source.name: job.sha256}):
                raise DataError(
                    f"{self.url}/{job.key}/{LOG_FILE} is not the log {job.name} that was "
                    "uploaded; remove it and run again"
                )
            shard = ingest_file(local_job, report)
            shard_path = self._shard_path(shard)
            filesystem.put_file(str(local_job.shard_dir / SHARD_FILE), shard_path)
            for name in _files_beside(shard):
                filesystem.put_file(str(local_job.shard_dir / name), f"{folder}/{name}")
        return shard

    def download_shard(self, job: Job, shard: Shard) -> None:
        """Download a shard to `job.shard_dir` and remove everything else about its log.

        Args:
            job: The log.
            shard: Its shard, which is in the store.

        Raises:
            DataError: The files are not those of the shard's record.
        """
        filesystem, folder = self._location(job)
        with new_shard_dir(job) as scratch:
            filesystem.get_file(self._shard_path(shard), str(scratch / SHARD_FILE))
            for name in _files_beside(shard):
                filesystem.get_file(f"{folder}/{name}", str(scratch / name))
        if not find_shard(job):
            raise DataError(
                f"{self.url}/{job.key} is not what its record says; remove it and run again"
            )
        filesystem.rm(folder, recursive=True)

    def _shard_path(self, shard: Shard) -> str:
        _, prefix = open_store(self.url)
        return f"{prefix}/{shard_in_store(shard.parquet_sha256)}"

    def _location(self, job: Job) -> tuple[Any, str]:
        """Return the file system of the store and the path of a log's folder in it."""
        store, prefix = open_store(self.url)
        return store, f"{prefix}/{job.key}"


def _files_beside(shard: Shard) -> list[str]:
    """Return the names of the files in a shard's folder beside the shard, the record last."""
    return [BAD_ROWS_FILE, RECORD_FILE] if shard.num_bad_rows else [RECORD_FILE]
