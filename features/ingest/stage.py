"""The stage `ingest`: find the log files that are new, convert them to shards, assemble all shards.

The new files are read here or by the workers of a cluster.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from common.artifact import Artifact, ListedFile, write_manifest
from common.config.params import Ingest, Params
from common.files import DataError, recover, remove, replaced
from common.layout import PARQUET, RAW
from common.logs import get_logger
from common.parquet import ParquetWriter, scan_parquet
from common.progress import Progress
from features.collect.manifest import RawFile, RawManifest
from features.ingest.readers.read_log import max_rows
from features.ingest.readers.row_validation import BAD_ROW_DTYPES, BAD_ROWS_FILE
from features.ingest.shard import (
    SHARD_FILE,
    Job,
    ReportProgress,
    Shard,
    TooManyBadRowsError,
    find_shard,
    ingest_file,
    recipe_hash,
    shard_key,
)
from features.schema.schema import load_schema

log = get_logger("ingest")

# The folders of finished shards, until the shards of all log files are finished. The next run takes
# them over from a run that was killed.
SHARDS_DIR = PARQUET.with_name(".parquet.parts")

Runner = Callable[[Sequence[Job], ReportProgress], Iterable[Shard]]
"""Runs `ingest_file` for each job, in any order. Afterwards each `job.shard_dir` exists here."""


def run_locally(jobs: Sequence[Job], report: ReportProgress) -> Iterator[Shard]:
    """Read the log files in this process, one after the other."""
    return (ingest_file(job, report) for job in jobs)


def ingest(params: Params, root: Path, runner: Runner = run_locally) -> None:
    """Convert artifacts/raw to artifacts/parquet.

    The result is a Parquet file (a shard) for each log file, bad_rows.parquet, and manifest.json
    with the numbers of rows. A log file that was ingested before by the same recipe is not read
    again. A file with the same rows as an earlier one is logged and left out. The bytes do not
    depend on the runner.

    Args:
        params: The parameters.
        root: The repository.
        runner: Reads the new log files, here or on other machines.

    Raises:
        DataError: A file is not a log of the schema at all, no file has rows, or the share of
            malformed rows is above `ingest.max_bad_fraction`. The malformed rows are then in
            runs/bad_rows.parquet.
    """
    raw, target, shards_dir = root / RAW, root / PARQUET, root / SHARDS_DIR
    recover(target)
    raw_files = RawManifest.read(raw).files
    schema, short_rows = load_schema(params.data.schema_name), params.ingest.short_rows
    recipe = recipe_hash(schema, short_rows)
    jobs_of_files = {
        file.name: Job(
            file.name,
            raw / file.name,
            file.listed,
            schema,
            short_rows,
            recipe,
            shards_dir,
            file.partitions,
        )
        for file in raw_files
    }
    jobs = {job.key: job for job in jobs_of_files.values()}
    keys = {name: job.key for name, job in jobs_of_files.items()}
    reusable = _shards_of_last_run(target, recipe)
    reusable |= _shards_of_unfinished_run(shards_dir, jobs)
    new_jobs = [job for job in jobs.values() if job.key not in reusable]
    limit = _max_bad_rows(new_jobs, reusable.values(), params.ingest)
    new_jobs = [replace(job, max_bad_rows=limit) for job in new_jobs]
    try:
        with Progress("ingest", None, root) as progress:
            estimate = _RowEstimate(progress, sum(job.num_bytes for job in new_jobs))
            new_shards = {
                shard_key(shard.sha256, recipe, shard.partitions): shard
                for shard in runner(new_jobs, estimate.report)
            }
        finished = reusable | {job.key: _finished_by(job, new_shards[job.key]) for job in new_jobs}
        in_order = [(file, finished[keys[file.name]]) for file in raw_files]
        _assemble(in_order, schema.days is not None, recipe, params, root)
        _remove_if_unused(shards_dir)
    except TooManyBadRowsError as error:
        raise DataError(f"{error}. {_save_bad_rows(shards_dir, root)}") from None
    finally:
        with suppress(OSError):
            shards_dir.rmdir()  # it is not empty if this run failed after it finished some shards
    num_reused = sum(key in reusable for key in keys.values())
    if num_reused:
        log.info(f"{num_reused} files are reused, not read again")


def used_shards(parquet: Artifact) -> list[Shard]:
    """Return the shards of artifacts/parquet whose rows count, in time order."""
    return [shard for shard in shards_of(parquet) if shard.same_rows_as is None]


def shards_of(parquet: Artifact) -> list[Shard]:
    """Return the shards of artifacts/parquet in time order, also those whose rows do not count."""
    return [Shard(**shard) for shard in parquet.about["shards"]]


@dataclass(frozen=True)
class FinishedShard:
    """A shard and where its files are.

    Attributes:
        shard: The shard.
        parquet: The file of its rows.
        bad_rows: The file of its bad rows, or of the bad rows of several shards.
        log_file: The name of the shard's log file if `bad_rows` is of several shards; else None.
        listed: The size and the checksums of `parquet`, if they are known already.
    """

    shard: Shard
    parquet: Path
    bad_rows: Path
    log_file: str | None
    listed: ListedFile | None = None

    def bad_row_groups(self) -> Iterator[pl.DataFrame]:
        """Yield the shard's bad rows, with the columns of BAD_ROW_DTYPES, by row groups."""
        if not self.shard.num_bad_rows:
            return
        with pq.ParquetFile(self.bad_rows) as file:
            for number in range(file.num_row_groups):
                # A row group contains the bad rows of one log file, whose name is the first column.
                statistics = file.metadata.row_group(number).column(0).statistics
                if self.log_file is None or statistics.min == self.log_file:
                    yield pl.DataFrame(file.read_row_group(number)).select(*BAD_ROW_DTYPES)


@dataclass
class _RowEstimate:
    """Estimates the number of all rows from the share of the bytes that are read.

    Attributes:
        progress: Receives the estimate.
        num_bytes: The number of bytes of all new log files.
        bytes_read: The number of bytes that are read.
    """

    progress: Progress
    num_bytes: int
    bytes_read: int = 0

    def report(self, num_rows: int, num_bytes: int) -> None:
        self.bytes_read += num_bytes
        num_rows_read = self.progress.num_rows + num_rows
        self.progress.total_rows = int(num_rows_read * self.num_bytes / max(self.bytes_read, 1))
        self.progress.update(num_rows)


def _shards_of_last_run(target: Path, recipe: str) -> dict[str, FinishedShard]:
    """Return the undamaged shards in artifacts/parquet that this recipe would make again.

    Returns:
        The key of a job -> its shard.
    """
    last = Artifact.open_of_last_run(target)
    if last is None or last.about["made_by"] != recipe or not last.is_whole(BAD_ROWS_FILE):
        return {}
    return {
        shard_key(shard.sha256, recipe, shard.partitions): FinishedShard(
            shard,
            target / shard.parquet,
            target / BAD_ROWS_FILE,
            shard.name,
            last.files[shard.parquet],
        )
        for shard in shards_of(last)
        if shard.same_rows_as is None and last.is_whole(shard.parquet)
    }


def _shards_of_unfinished_run(
    shards_dir: Path, jobs: Mapping[str, Job]
) -> dict[str, FinishedShard]:
    """Return the undamaged shards of these jobs in `shards_dir`, and remove everything else there.

    Returns:
        The key of a job -> its shard.
    """
    if not shards_dir.exists():
        return {}
    finished = {}
    for path in shards_dir.iterdir():
        job = jobs.get(path.name)
        if job and (shard := find_shard(job)):
            finished[job.key] = _finished_by(job, shard)
        else:
            _remove_if_unused(path)
    return finished


def _remove_if_unused(path: Path) -> None:
    """Remove a folder, except what a worker that was taken for dead still writes to."""
    with suppress(OSError):
        remove(path)


def _finished_by(job: Job, shard: Shard) -> FinishedShard:
    return FinishedShard(shard, job.shard_dir / SHARD_FILE, job.shard_dir / BAD_ROWS_FILE, None)


def _assemble(
    files: list[tuple[RawFile, FinishedShard]],
    by_rows: bool,
    recipe: str,
    params: Params,
    root: Path,
) -> None:
    """Write artifacts/parquet: hard links to the shards, one file of bad rows, and the manifest.

    Args:
        files: The log files with their shards, in time order.
        by_rows: Whether the rows say of which day they are, and not the folders of the files.
        recipe: The hash of code, libraries and schema, as of `recipe_hash`.
        params: The parameters.
        root: The repository.
    """
    shards: list[Shard] = []
    names_by_rows: dict[str, str] = {}
    listed: dict[str, ListedFile] = {}
    with replaced(root / PARQUET) as scratch:
        scratch.mkdir()
        bad_row_dtypes = pl.Schema({"file": pl.String, **BAD_ROW_DTYPES})
        with ParquetWriter(scratch / BAD_ROWS_FILE, bad_row_dtypes) as bad_writer:
            for file, source in files:
                days = source.shard.days if by_rows else None
                if not by_rows and file.day is not None:
                    days = {file.day: source.shard.num_rows}
                shard = replace(
                    source.shard, name=file.name, parquet=f"{file.name}.parquet", days=days
                )
                shard = _mark_if_same_rows(shard, names_by_rows)
                shards.append(shard)
                if shard.same_rows_as is None:
                    names_by_rows[_key_of_rows(shard)] = shard.name
                    target = scratch / shard.parquet
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.link(source.parquet, target)
                    listed[shard.parquet] = source.listed or ListedFile.of(
                        target, shard.parquet_sha256
                    )
                    for group in source.bad_row_groups():
                        bad_writer.write(group.select(pl.lit(file.name).alias("file"), pl.all()))
        _check_rows(shards)
        used = [shard for shard in shards if shard.same_rows_as is None]
        num_rows = sum(shard.num_rows for shard in used)
        num_bad_rows = sum(shard.num_bad_rows for shard in used)
        _check_bad_fraction(num_rows, num_bad_rows, params.ingest, scratch / BAD_ROWS_FILE, root)
        write_manifest(
            scratch,
            {
                "schema": params.data.schema_name,
                "made_by": recipe,
                "shards": [asdict(shard) for shard in shards],
                "num_rows": num_rows,
                "num_bad_rows": num_bad_rows,
            },
            listed,
        )


def _key_of_rows(shard: Shard) -> str:
    """Return a text that is the same for shards of which only one counts.

    A day that was delivered twice has the same rows twice. Small parts of a day may have equal rows
    by chance, so they have to be the same log files as well.
    """
    return shard.parquet_sha256 if shard.days is None else f"{shard.parquet_sha256} {shard.sha256}"


def _mark_if_same_rows(shard: Shard, names_by_rows: dict[str, str]) -> Shard:
    """Set `same_rows_as` if the shard has rows, and an earlier shard has the same ones.

    Args:
        shard: The shard.
        names_by_rows: `_key_of_rows` of each earlier shard that has rows of its own -> its name.
    """
    other = names_by_rows.get(_key_of_rows(shard))
    if not shard.num_rows or other is None:
        return shard
    log.info(
        f"{shard.name} contains the same rows as {other} and is left out; "
        "remove it from data.source"
    )
    return replace(shard, same_rows_as=other)


def _check_rows(shards: list[Shard]) -> None:
    """Name the log files without rows.

    Raises:
        DataError: No log file has rows.
    """
    empty = [shard.name for shard in shards if not shard.num_rows]
    if len(empty) == len(shards):
        raise DataError(f"{empty[0]} has no rows; give a log with rows, or fetch it again")
    for name in empty:
        log.warning(f"{name} has no rows: it is a day without rows; fetch it again if it is not")


def _max_bad_rows(
    new_jobs: Iterable[Job], reusable: Iterable[FinishedShard], options: Ingest
) -> int | None:
    """Return a number of bad rows that is too large, however many good rows there are.

    The size of the files limits how many good rows there can be. None if any number is allowed.
    """
    fraction = options.max_bad_fraction
    if fraction == 1:
        return None
    num_rows = sum(finished.shard.num_rows for finished in reusable)
    for job in new_jobs:
        with suppress(
            DataError, OSError
        ):  # a file that cannot be opened is refused when it is read
            num_rows += max_rows(job.source, job.schema, job.short_rows, job.partitions)
    return int(fraction / (1 - fraction) * num_rows) + 1


def _save_bad_rows(shards_dir: Path, root: Path) -> str:
    """Move the bad rows of a file that was not read to its end to runs/, and say what to do.

    Where the workers use a shared storage, they are not on this machine.
    """
    remedy = "Correct the log or raise the limit"
    if not (shards_dir / BAD_ROWS_FILE).exists():
        return remedy
    saved = root / "runs" / BAD_ROWS_FILE
    saved.parent.mkdir(exist_ok=True)
    (shards_dir / BAD_ROWS_FILE).replace(saved)
    return f"See {saved}. {remedy}"


def _check_bad_fraction(
    num_rows: int, num_bad_rows: int, options: Ingest, bad_rows: Path, root: Path
) -> None:
    """Log the number of bad rows, and refuse too many of them.

    Raises:
        DataError: Their share is above `ingest.max_bad_fraction`.
    """
    if not num_bad_rows:
        return
    fraction = num_bad_rows / (num_rows + num_bad_rows)
    first = scan_parquet(bad_rows).head(1).collect().row(0, named=True)
    example = f"{first['file']} line {first['line']:,}: {first['reason']}"
    log.info(f"{num_bad_rows:,} malformed rows ({fraction:.2%}) quarantined, the first: {example}")
    if fraction > options.max_bad_fraction:
        saved = root / "runs" / BAD_ROWS_FILE
        saved.parent.mkdir(exist_ok=True)
        bad_rows.replace(saved)
        raise DataError(
            f"{num_bad_rows:,} of {num_rows + num_bad_rows:,} rows are malformed ({fraction:.2%}, "
            f"ingest.max_bad_fraction is {options.max_bad_fraction:.2%}); the first: {example}. "
            f"See {saved}; correct the log or raise the limit"
        )
