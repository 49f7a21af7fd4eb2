"""One log file to one Parquet file (a shard). A plain function of plain data: here or on another machine, the same bytes."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pyarrow as pa

from common.code_hash import code_hashes
from common.config.loading import ConfigError
from common.files import DataError, read_json, remove, sha256_file, write_json
from common.hashed_files import find_mismatch
from common.parquet import ParquetWriter
from features.ingest.readers.read_log import read_log
from features.ingest.readers.row_validation import BAD_ROWS, typed_columns
from features.schema.schema import Schema

ROW_GROUP_ROWS = 131_072
SHARD, BAD, RECORD = "shard.parquet", "bad_rows.parquet", "shard.json"
# They decide what a declaration may say and what becomes of the columns later; the declaration itself is hashed as it was read.
NOT_IN_SHARDS = (
    "common.config.loading",
    "common.config.params",
    "features.sample.sample_schema",
    "features.schema.transforms",
)

Report = Callable[[int, int], None]  # rows and bytes read since the last call


@dataclass(frozen=True)
class Shard:
    """A log file's rows as Parquet. sha256 is the log file's, parquet_sha256 the shard's: equal rows have equal shards.

    same_rows_as: the earlier file that these rows are already counted in; such a shard is not kept.
    """

    name: str
    sha256: str
    parquet: str
    parquet_sha256: str
    num_rows: int
    num_bad_rows: int
    same_rows_as: str | None


@dataclass(frozen=True)
class Job:
    """A log file to be read, where its shard is left (a folder of parts), and all that decides the shard's bytes."""

    source: Path
    sha256: str
    num_bytes: int
    schema: Schema
    short_rows: str
    made_by: str
    parts: Path

    @cached_property
    def key(self) -> str:
        """The same log read by the same code."""
        return hashlib.sha256(f"{self.sha256} {self.made_by}".encode()).hexdigest()

    @property
    def part(self) -> Path:
        return self.parts / self.key


def ingest_file(job: Job, report: Report) -> Shard:
    """Read a log file to job.part, a folder that is whole or absent: the shard, its bad rows (without the file's name), the record of both.

    A part that stands there, whole, is not made again: that is how a killed run goes on. Raises DataError for a file that is no log at
    all, ConfigError where code or libraries are not those of the machine that asks.
    """
    if made_by(job.schema, job.short_rows) != job.made_by:
        raise ConfigError(
            f"the worker on {platform.node()} runs another clickmill, polars or pyarrow; install the same there and restart it"
        )
    if done := find(job):
        return done
    remove(job.part)  # damaged
    with new_part(job) as scratch:
        num_rows, num_bad_rows = _read(job, scratch, report)
        name = job.source.name
        shard = Shard(
            name,
            job.sha256,
            f"{name}.parquet",
            sha256_file(scratch / SHARD),
            num_rows,
            num_bad_rows,
            None,
        )
        write_json(
            scratch / RECORD,
            {"shard": asdict(shard), "bad_rows_sha256": sha256_file(scratch / BAD)},
        )
    return shard


def find(job: Job) -> Shard | None:
    """The shard that stands at job.part, if it is whole."""
    if not (job.part / RECORD).exists():
        return None
    try:
        record = read_json(job.part / RECORD)
        whole = find_mismatch(job.part, expected_hashes(record)) is None
    except (DataError, OSError):
        return None
    return Shard(**record["shard"]) if whole else None


def expected_hashes(record: dict[str, Any]) -> dict[str, str]:
    """The files that a record vouches for."""
    return {SHARD: record["shard"]["parquet_sha256"], BAD: record["bad_rows_sha256"]}


@contextmanager
def new_part(job: Job) -> Iterator[Path]:
    """A folder of this attempt's own, which becomes job.part. Of two attempts (a worker thought dead may live) the first one stands."""
    scratch = job.parts / f".{job.key}.{uuid4().hex}.tmp"
    scratch.mkdir(parents=True)
    try:
        yield scratch
        try:
            scratch.rename(job.part)
        except OSError:
            if find(job) is None:
                raise
    finally:
        remove(scratch)


def made_by(schema: Schema, short_rows: str) -> str:
    """A hash of all that decides a shard's bytes beside its log file: code, libraries, declaration, dialect."""
    later = {"transform", "policy"}
    declared = schema.model_dump(
        mode="json", exclude={"sample": True, "derived": True, "columns": {"__all__": later}}
    )
    return hashlib.sha256(
        json.dumps([CODE, pl.__version__, pa.__version__, declared, short_rows]).encode()
    ).hexdigest()


def _read(job: Job, target: Path, report: Report) -> tuple[int, int]:
    """The log's rows and bad rows to target; how many there are of each."""
    num_rows = num_bad_rows = read_bytes = 0
    columns = pl.Schema(typed_columns(job.schema))
    with (
        ParquetWriter(target / SHARD, columns, ROW_GROUP_ROWS) as writer,
        ParquetWriter(target / BAD, pl.Schema(BAD_ROWS)) as bad_writer,
    ):
        for parsed in read_log(job.source, job.schema, labelled=True, short_rows=job.short_rows):
            writer.write(parsed.rows)
            bad_writer.write(parsed.bad)
            num_rows += parsed.rows.height
            num_bad_rows += parsed.bad.height
            report(parsed.num_lines, parsed.read_bytes - read_bytes)
            read_bytes = parsed.read_bytes
    return num_rows, num_bad_rows


CODE = code_hashes(__name__, without=NOT_IN_SHARDS)  # as it is now: a worker may live for months
