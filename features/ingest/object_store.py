"""Shared storage for machines without a common folder: S3, or another store that fsspec knows.

The machine that asks uploads a log; a worker reads it and uploads the shard; the asking machine
downloads the shard. In the store, URL/KEY/ contains the log and the files of its shard. A shard
counts only if its record is there, which is uploaded last. Credentials and the endpoint come from
each machine's environment, never from params.yaml.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec

from common.checked_json import parse_checked_json
from common.config.loading import ConfigError
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

log = get_logger("ingest")

LOG_FILE = "log"


@dataclass(frozen=True)
class ObjectStore:
    """The shared storage at a URL, such as s3://BUCKET/PREFIX (`ingest.shared_storage`)."""

    url: str

    def __post_init__(self) -> None:
        if "@" in self.url:  # the message does not repeat the URL, because it contains a password
            raise ConfigError(
                "ingest.shared_storage has an @ in it: user and password come from each "
                "machine's environment, not from params.yaml"
            )

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
                f"ingest.shared_storage is {self.url}, where nothing can be written: "
                f"{mask_passwords(str(error))}"
            ) from None

    def find_shard(self, job: Job) -> Shard | None:
        """Return the shard of a log if it is in the store.

        If its record is damaged, it is taken for absent, and the log is read again.
        """
        filesystem, folder = self._location(job)
        try:
            record = parse_checked_json(filesystem.cat_file(f"{folder}/{RECORD_FILE}"))
        except FileNotFoundError:
            return None
        return Shard(**record["shard"]) if record else None

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
            for name in (SHARD_FILE, BAD_ROWS_FILE, RECORD_FILE):
                filesystem.put_file(str(local_job.shard_dir / name), f"{folder}/{name}")
        return shard

    def download_shard(self, job: Job) -> None:
        """Download a shard to `job.shard_dir` and remove everything about its log from the store.

        Raises:
            DataError: The files are not those of the shard's record.
        """
        filesystem, folder = self._location(job)
        with new_shard_dir(job) as scratch:
            for name in (SHARD_FILE, BAD_ROWS_FILE, RECORD_FILE):
                filesystem.get_file(f"{folder}/{name}", str(scratch / name))
        if not find_shard(job):
            raise DataError(
                f"{self.url}/{job.key} is not what its record says; remove it and run again"
            )
        filesystem.rm(folder, recursive=True)

    def _location(self, job: Job) -> tuple[Any, str]:
        """Return the file system of the store and the path of a log's folder in it."""
        options = {"auto_mkdir": True} if self.url.startswith("file:") else {}
        try:
            # A cache of listings would hide what other machines have changed since.
            filesystem, path = fsspec.url_to_fs(self.url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"ingest.shared_storage: {error}; "
                "give s3://BUCKET/PREFIX or another URL that fsspec knows"
            ) from None
        return filesystem, f"{path.rstrip('/')}/{job.key}"
