"""The conversion of one log file to one Parquet file (a shard).

A plain function of plain data: it gives the same bytes in this process and on another machine.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from common.artifact import ListedFile, checked_meanwhile
from common.checked_json import checked_json_text, is_as_written
from common.code_hash import code_hashes
from common.config.loading import ConfigError
from common.files import DataError, read_json, remove, sha256_file
from common.full_disk import full_disk_named
from common.hashed_files import find_mismatch
from common.logs import get_logger
from common.parquet import ParquetWriter
from features.ingest.day_order import DayOrder
from features.ingest.readers.blocks import NoRowsError
from features.ingest.readers.read_log import read_log
from features.ingest.readers.row_validation import BAD_ROW_DTYPES, BAD_ROWS_FILE, typed_columns
from features.schema.schema import Partitions, Schema

log = get_logger("ingest")

ROW_GROUP_ROWS = 131_072
# The files in a shard's folder. The record is written last.
SHARD_FILE = "shard.parquet"
RECORD_FILE = "shard.json"
# Modules that a shard's bytes do not depend on. They check what a schema may say, or say what
# becomes of the columns later; the parts of the schema that matter are hashed as values.
MODULES_WITHOUT_EFFECT = (
    "common.artifact",
    "common.config.loading",
    "common.config.params",
    "features.schema.sample_section",
    "features.schema.transforms",
)

ReportProgress = Callable[[int, int], None]
"""Receives the number of rows, and of bytes of the log file, that were read since the last call."""


class TooManyBadRowsError(DataError):
    """A log file has more than `Job.max_bad_rows` bad rows. They are in shards_dir."""


@dataclass(frozen=True)
class Shard:
    """The rows of a log file as Parquet, as it is recorded in JSON.

    Attributes:
        name: The name of the log file, its path relative to data.source.
        sha256: The SHA-256 of the log file, in hex.
        parquet: The name of the shard's file in artifacts/parquet.
        parquet_sha256: The SHA-256 of the shard's file, in hex. Equal rows give equal bytes.
        num_rows: The number of rows in the shard.
        num_bad_rows: The number of malformed rows in the log file.
        same_rows_as: The name of an earlier log file with the same rows, which are already counted;
            then there is no file of this shard. None if there is no such log file.
        days: The number of rows of each day, by the day's name, in the order of the rows; None if
            the log does not say of which days its rows are.
        partitions: The values of the columns that the folders of the log file give.
    """

    name: str
    sha256: str
    parquet: str
    parquet_sha256: str
    num_rows: int
    num_bad_rows: int
    same_rows_as: str | None
    days: dict[str, int] | None = None
    partitions: Partitions = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A log file to be read, and everything that decides the bytes of its shard.

    Attributes:
        name: The name of the log file, its path relative to data.source.
        source: The log file.
        listed: The size and the checksums of the log file.
        schema: The schema of the log.
        short_rows: `fill` or `quarantine`, see `read_log`.
        recipe_hash: The hash of the code, libraries and schema, as of `recipe_hash`.
        shards_dir: The folder that contains a folder for each finished shard.
        partitions: The values of the columns that the folders of the log file give.
        max_bad_rows: With more bad rows than this the log is refused, whatever its other rows are,
            so no more of the file is read. None if there is no such number.
    """

    name: str
    source: Path
    listed: ListedFile
    schema: Schema
    short_rows: str
    recipe_hash: str
    shards_dir: Path
    partitions: Partitions = field(default_factory=dict)
    max_bad_rows: int | None = None

    @property
    def sha256(self) -> str:
        """The SHA-256 of the log file, in hex."""
        return self.listed.sha256

    @property
    def num_bytes(self) -> int:
        """The size of the log file."""
        return self.listed.bytes

    @cached_property
    def key(self) -> str:
        """The name of the shard's folder: equal for the same log read by the same recipe."""
        return shard_key(self.sha256, self.recipe_hash, self.partitions)

    @property
    def shard_dir(self) -> Path:
        """The folder of the finished shard."""
        return self.shards_dir / self.key


def ingest_file(job: Job, report: ReportProgress) -> Shard:
    """Convert a log file to the folder `job.shard_dir`, which is complete or absent.

    The folder contains the shard, its bad rows (without the log file's name, and only if there are
    any) and the record of both. A complete folder is not made again, so a new run continues where a
    killed one stopped.

    Raises:
        DataError: The file is not a log of the schema at all, or not the one that was collected.
        TooManyBadRowsError: It has more bad rows than `job.max_bad_rows`.
        ConfigError: This machine has other code or libraries than the machine that made the job.
    """
    if recipe_hash(job.schema, job.short_rows) != job.recipe_hash:
        raise ConfigError(
            f"the worker on {platform.node()} runs another clickmill, polars or pyarrow; "
            "install the same versions there and restart it"
        )
    if shard := find_shard(job):
        return shard
    remove(job.shard_dir)  # if there is one, it is damaged
    with new_shard_dir(job) as scratch:
        try:
            with checked_meanwhile(job.source, job.listed):
                num_rows, num_bad_rows, days = _convert(job, scratch, report)
        except TooManyBadRowsError:
            _keep_bad_rows(job, scratch / BAD_ROWS_FILE)
            raise
        shard = Shard(
            name=job.name,
            sha256=job.sha256,
            parquet=f"{job.name}.parquet",
            parquet_sha256=sha256_file(scratch / SHARD_FILE),
            num_rows=num_rows,
            num_bad_rows=num_bad_rows,
            same_rows_as=None,
            days=days,
            partitions=dict(job.partitions),
        )
        record: dict[str, Any] = {"shard": asdict(shard)}
        if num_bad_rows:
            record["bad_rows_sha256"] = sha256_file(scratch / BAD_ROWS_FILE)
        # The whole folder is complete or absent, so no file in it is written beside and renamed.
        (scratch / RECORD_FILE).write_text(checked_json_text(record), encoding="utf-8")
    return shard


def shard_key(sha256: str, recipe: str, partitions: Partitions) -> str:
    """Return the key of a shard: equal for the same log, in equal folders, by the same recipe.

    Args:
        sha256: The SHA-256 of the log file, in hex.
        recipe: The hash of code, libraries and schema, as of `recipe_hash`.
        partitions: The values of the columns that the folders of the log file give.
    """
    inputs = f"{sha256} {recipe}"
    if partitions:
        inputs += f" {json.dumps(dict(partitions), sort_keys=True)}"
    return hashlib.sha256(inputs.encode()).hexdigest()


def find_shard(job: Job) -> Shard | None:
    """Return the shard in `job.shard_dir`; None if there is none or a file of it is damaged."""
    path = job.shard_dir / RECORD_FILE
    if not path.exists():
        return None
    try:
        record = read_json(path)
        if not is_as_written(path, record) or find_mismatch(job.shard_dir, recorded_hashes(record)):
            return None
    except (DataError, OSError, AttributeError):  # a damaged record may be of another type
        return None
    return Shard(**record["shard"])


def recorded_hashes(record: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each file that a shard's record lists."""
    hashes = {SHARD_FILE: record["shard"]["parquet_sha256"]}
    if record["shard"]["num_bad_rows"]:
        hashes[BAD_ROWS_FILE] = record["bad_rows_sha256"]
    return hashes


@contextmanager
def new_shard_dir(job: Job) -> Iterator[Path]:
    """Yield a temporary folder that becomes `job.shard_dir` when the block ends.

    Two processes may make the same shard, because a worker that was taken for dead may still run.
    The folder of the first one to finish is kept.
    """
    scratch = job.shards_dir / f".{job.key}.{uuid4().hex}.tmp"
    scratch.mkdir(parents=True)
    try:
        with full_disk_named(job.shard_dir, scratch):
            yield scratch
        try:
            scratch.rename(job.shard_dir)
        except OSError:
            if find_shard(job) is None:
                raise
    finally:
        remove(scratch)


def recipe_hash(schema: Schema, short_rows: str) -> str:
    """Hash everything but the log file that decides a shard's bytes.

    That is the code, the versions of Polars and PyArrow, the schema as far as it is about reading,
    and what becomes of short rows.
    """
    used_later: Any = {
        "transform": True,
        "policy": True,
        "table": True,
        "row_time": True,
        "list": {"pooling": True, "max_length": True},
    }
    declaration = schema.model_dump(
        mode="json", exclude={"sample": True, "derived": True, "columns": {"__all__": used_later}}
    )
    recipe = [CODE_HASHES, pl.__version__, pa.__version__, declaration, short_rows]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def _keep_bad_rows(job: Job, bad_rows: Path) -> None:
    """Copy the bad rows of a file that is not read to its end, with the name of the file."""
    dtypes = pl.Schema({"file": pl.String, **BAD_ROW_DTYPES})
    with (
        pq.ParquetFile(bad_rows) as file,
        ParquetWriter(job.shards_dir / BAD_ROWS_FILE, dtypes) as writer,
    ):
        for number in range(file.num_row_groups):
            rows = pl.DataFrame(file.read_row_group(number))
            writer.write(rows.select(pl.lit(job.name).alias("file"), *BAD_ROW_DTYPES))


def _convert(
    job: Job, target: Path, report: ReportProgress
) -> tuple[int, int, dict[str, int] | None]:
    """Write the rows and the bad rows of a log file.

    A log file without rows gives files without rows.

    Returns:
        The number of rows, the number of bad rows, and `Shard.days`.
    """
    num_rows = num_bad_rows = bytes_read = 0
    order = DayOrder(job.schema.days) if job.schema.days else None
    first_bad, bad_writer = "", None
    dtypes = pl.Schema(typed_columns(job.schema))
    with (
        ParquetWriter(target / SHARD_FILE, dtypes, ROW_GROUP_ROWS) as writer,
        ExitStack() as bad_rows_file,
        suppress(NoRowsError),
    ):
        for piece in read_log(
            job.source,
            job.schema,
            labelled=True,
            short_rows=job.short_rows,
            partitions=job.partitions,
        ):
            # Checked before the next piece, so that a file that ends here is counted to its end.
            if job.max_bad_rows is not None and num_bad_rows > job.max_bad_rows:
                raise TooManyBadRowsError(
                    f"{job.name}: {num_bad_rows:,} of its first "
                    f"{num_rows + num_bad_rows:,} rows are malformed, more than "
                    "ingest.max_bad_fraction allows whatever follows, so the rest is not read; "
                    f"the first: {first_bad}"
                )
            writer.write(order.add(piece.rows) if order else piece.rows)
            if piece.bad_rows.height:
                if bad_writer is None:
                    line, reason = piece.bad_rows.select("line", "reason").row(0)
                    first_bad = f"line {line:,}: {reason}"
                    bad_writer = bad_rows_file.enter_context(
                        ParquetWriter(target / BAD_ROWS_FILE, pl.Schema(BAD_ROW_DTYPES))
                    )
                bad_writer.write(piece.bad_rows)
            num_rows += piece.rows.height
            num_bad_rows += piece.bad_rows.height
            report(piece.num_lines, piece.bytes_read - bytes_read)
            bytes_read = piece.bytes_read
    if order and not order.is_sorted:
        log.info(f"{job.name} is not in the order of its days, so its rows are sorted by day")
        sorted_shard = target / f"sorted.{SHARD_FILE}"
        order.rewrite(target / SHARD_FILE, sorted_shard, ROW_GROUP_ROWS)
        sorted_shard.replace(target / SHARD_FILE)
    return num_rows, num_bad_rows, order.rows_by_day() if order else None


# Computed when the module is loaded: a worker may run for months while its files are replaced.
CODE_HASHES = code_hashes(__name__, without=MODULES_WITHOUT_EFFECT)
