"""Where machines that do not see this folder meet: a prefix on S3, or on another store that fsspec knows.

URL/KEY/ holds a log and what was made of it, the record last: without one, nothing there counts. Credentials and the endpoint come from
each machine's environment, never from params.yaml.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec

from common.config.loading import ConfigError
from common.files import DataError
from common.hashed_files import find_mismatch
from common.logs import get_logger
from features.ingest.shard import (
    BAD,
    RECORD,
    SHARD,
    Job,
    Report,
    Shard,
    find,
    ingest_file,
    new_part,
)

log = get_logger("ingest")

LOG = "log"


@dataclass(frozen=True)
class Store:
    """The shared place at url: the machine that asks puts logs and fetches shards, workers ingest."""

    url: str

    def __post_init__(self) -> None:
        if "@" in self.url:  # and its text is not repeated here
            raise ConfigError(
                "ingest.shared_storage has an @ in it: user and password come from each machine's environment, not from params.yaml"
            )

    def put(self, job: Job) -> None:
        """Bring the log there, unless it is there or was read already. Raises ConnectionError where nothing can be put."""
        files, folder = self._at(job)
        remote_log = f"{folder}/{LOG}"
        try:
            if not self.find(job) and not (
                files.exists(remote_log) and files.size(remote_log) == job.num_bytes
            ):
                log.info(f"{job.source.name} to {self.url}, {job.num_bytes:,} bytes")
                files.put_file(str(job.source), remote_log)
        except (
            Exception
        ) as error:  # each store has its own for no credentials, no bucket, no right, no network
            raise ConnectionError(
                f"ingest.shared_storage is {self.url}, where nothing can be put: {error}"
            ) from None

    def find(self, job: Job) -> Shard | None:
        """The shard of the log, if it is there."""
        files, folder = self._at(job)
        try:
            return Shard(**json.loads(files.cat_file(f"{folder}/{RECORD}"))["shard"])
        except FileNotFoundError:
            return None

    def ingest(self, job: Job, report: Report, scratch: Path) -> Shard:
        """Fetch the log to a folder below scratch, which needs room for it and its shard, read it, bring back what was made of it."""
        files, folder = self._at(job)
        with TemporaryDirectory(dir=scratch, prefix="clickmill-") as temporary:
            here = replace(
                job, source=Path(temporary) / job.source.name, parts=Path(temporary) / "parts"
            )
            files.get_file(f"{folder}/{LOG}", str(here.source))
            if find_mismatch(here.source.parent, {here.source.name: job.sha256}):
                raise DataError(
                    f"{self.url}/{job.key}/{LOG} is not what was put there of {job.source.name}; remove it and run again"
                )
            shard = ingest_file(here, report)
            for name in (SHARD, BAD, RECORD):
                files.put_file(str(here.part / name), f"{folder}/{name}")
        return shard

    def fetch(self, job: Job) -> None:
        """Bring what was made of the log to job.part, and leave nothing of it there."""
        files, folder = self._at(job)
        with new_part(job) as scratch:
            for name in (SHARD, BAD, RECORD):
                files.get_file(f"{folder}/{name}", str(scratch / name))
        if not find(job):
            raise DataError(
                f"{self.url}/{job.key} is not what its record says; remove it and run again"
            )
        files.rm(folder, recursive=True)

    def _at(self, job: Job) -> tuple[Any, str]:
        options = {"auto_mkdir": True} if self.url.startswith("file:") else {}
        try:  # a cache of listings would not know what other machines did since
            files, path = fsspec.url_to_fs(self.url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"ingest.shared_storage: {error}; give s3://BUCKET/PREFIX or another URL that fsspec knows"
            ) from None
        return files, f"{path.rstrip('/')}/{job.key}"
