"""Raw log files to Parquet, one file each: plan what is new, have it read (here or by a cluster's workers), assemble the whole."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from common.config.params import Ingest, Params
from common.files import DataError, read_json, recover, remove, replaced, write_json
from common.hashed_files import find_mismatch
from common.logs import get_logger
from common.parquet import ParquetWriter
from common.progress import Progress
from features.collect.stage import RAW, Entry, Manifest
from features.ingest.readers.row_validation import BAD_ROWS
from features.ingest.shard import BAD, SHARD, Job, Report, Shard, find, ingest_file, made_by
from features.schema.schema import load_schema

log = get_logger("ingest")

PARQUET = Path("artifacts/parquet")
PARTS = PARQUET.with_name(
    ".parquet.parts"
)  # shards that are finished while others are not; the next run takes over a killed one's
BAD_ROWS_FILE = "bad_rows.parquet"

Mapper = Callable[
    [Sequence[Job], Report], Iterable[Shard]
]  # ingest_file for each job, in any order; its part then stands


def one_by_one(jobs: Sequence[Job], report: Report) -> Iterator[Shard]:
    """The mapper that reads the files here, in this process."""
    return (ingest_file(job, report) for job in jobs)


def ingest(params: Params, root: Path, mapper: Mapper = one_by_one) -> None:
    """artifacts/raw to artifacts/parquet: a Parquet file (a shard) per log file, bad_rows.parquet, and manifest.json with the counts.

    A log file that was ingested before, alike, is not read again: its shard is taken over as it is. A file that holds the same rows as
    another one is reported and left out. The bytes are the same whatever the mapper. Raises DataError for a file that is no log at all,
    and when more than ingest.max_bad_fraction of the rows are malformed; the malformed rows are then left in runs/bad_rows.parquet.
    """
    raw, target, parts = root / RAW, root / PARQUET, root / PARTS
    recover(target)
    entries = Manifest.read(raw).files
    schema, short_rows = load_schema(params.data.schema_name), params.ingest.short_rows
    code = made_by(schema, short_rows)
    jobs = {
        one.sha256: Job(raw / one.name, one.sha256, one.bytes, schema, short_rows, code, parts)
        for one in entries
    }
    known = _known_shards(target, code) | _finished_parts(parts, list(jobs.values()))
    new = [job for job in jobs.values() if job.sha256 not in known]
    try:
        with Progress("ingest", None, root) as progress:
            made = {
                shard.sha256: shard
                for shard in mapper(
                    new, _Estimate(progress, sum(job.num_bytes for job in new)).report
                )
            }
        _assemble(
            entries,
            known | {job.sha256: _of_part(made[job.sha256], job) for job in new},
            code,
            params,
            root,
        )
        _remove(parts)
    finally:
        with suppress(OSError):
            parts.rmdir()  # unless it holds what a failed run finished
    if num_known := sum(entry.sha256 in known for entry in entries):
        log.info(f"{num_known} files known from before, not read again")


@dataclass(frozen=True)
class Made:
    """A shard and where it stands. bad_rows: the file of its bad rows, or of many shards' where bad_rows_of says whose they are."""

    shard: Shard
    parquet: Path
    bad_rows: Path
    bad_rows_of: str | None

    def bad_row_groups(self) -> Iterator[pl.DataFrame]:
        """Its bad rows as they were written, group by group."""
        if self.shard.num_bad_rows:
            with pq.ParquetFile(self.bad_rows) as file:
                for number in range(file.num_row_groups):
                    name = file.metadata.row_group(number).column(
                        0
                    )  # a group holds the bad rows of one log file
                    if self.bad_rows_of is None or name.statistics.min == self.bad_rows_of:
                        yield pl.DataFrame(file.read_row_group(number)).select(*BAD_ROWS)


@dataclass
class _Estimate:
    """Tells how many rows there are in all, from the share of num_bytes read so far."""

    progress: Progress
    num_bytes: int
    read_bytes: int = 0

    def report(self, num_rows: int, num_bytes: int) -> None:
        self.read_bytes += num_bytes
        self.progress.total_rows = int(
            (self.progress.num_rows + num_rows) * self.num_bytes / max(self.read_bytes, 1)
        )
        self.progress.update(num_rows)


def used_shards(root: Path) -> list[Shard]:
    """The shards whose rows count, in time order."""
    shards = [Shard(**file) for file in read_json(root / PARQUET / "manifest.json")["files"]]
    return [shard for shard in shards if shard.same_rows_as is None]


def _known_shards(target: Path, code: str) -> dict[str, Made]:
    """By their log file's SHA-256, the shards of the last run that are still what would be made."""
    path = target / "manifest.json"
    manifest = read_json(path) if path.exists() else {}
    if manifest.get("made_by") != code:
        return {}
    shards = [Shard(**file) for file in manifest["files"]]
    return {
        shard.sha256: Made(shard, target / shard.parquet, target / BAD_ROWS_FILE, shard.name)
        for shard in shards
        if shard.same_rows_as is None
        and find_mismatch(target, {shard.parquet: shard.parquet_sha256}) is None
    }


def _finished_parts(parts: Path, jobs: list[Job]) -> dict[str, Made]:
    """Shards of a run that did not come to its end, as far as they are whole and wanted; all else there is removed."""
    by_key = {job.key: job for job in jobs}
    found = {}
    for path in parts.iterdir() if parts.exists() else ():
        job = by_key.get(path.name)
        if job and (shard := find(job)):
            found[job.sha256] = _of_part(shard, job)
        else:
            _remove(path)
    return found


def _remove(path: Path) -> None:
    """What a worker, thought dead, still writes to is left to the next run."""
    with suppress(OSError):
        remove(path)


def _of_part(shard: Shard, job: Job) -> Made:
    return Made(shard, job.part / SHARD, job.part / BAD, None)


def _assemble(
    entries: list[Entry], made: dict[str, Made], code: str, params: Params, root: Path
) -> None:
    """The folder artifacts/parquet, in the order of the log files: the shards themselves, no copies, and their bad rows in one file."""
    shards: list[Shard] = []
    with replaced(root / PARQUET) as scratch:
        scratch.mkdir()
        with ParquetWriter(
            scratch / BAD_ROWS_FILE, pl.Schema({"file": pl.String, **BAD_ROWS})
        ) as bad_writer:
            for entry in entries:
                one = made[entry.sha256]
                shard = _unless_twice(
                    replace(one.shard, name=entry.name, parquet=f"{entry.name}.parquet"), shards
                )
                shards.append(shard)
                if shard.same_rows_as is None:
                    os.link(one.parquet, scratch / shard.parquet)
                    for group in one.bad_row_groups():
                        bad_writer.write(group.select(pl.lit(entry.name).alias("file"), pl.all()))
        used = [shard for shard in shards if shard.same_rows_as is None]
        total = {
            "num_rows": sum(shard.num_rows for shard in used),
            "num_bad_rows": sum(shard.num_bad_rows for shard in used),
        }
        _check_bad_fraction(
            total["num_rows"], total["num_bad_rows"], params.ingest, scratch / BAD_ROWS_FILE, root
        )
        files = [asdict(shard) for shard in shards]
        write_json(
            scratch / "manifest.json",
            {"schema": params.data.schema_name, "made_by": code, "files": files, **total},
        )


def _unless_twice(shard: Shard, before: list[Shard]) -> Shard:
    """The shard, or the note that an earlier file holds the same rows."""
    first = next(
        (
            other.name
            for other in before
            if other.parquet_sha256 == shard.parquet_sha256 and not other.same_rows_as
        ),
        None,
    )
    if first is None:
        return shard
    log.info(f"{shard.name} holds the same rows as {first}: left out; remove it from data.source")
    return replace(shard, same_rows_as=first)


def _check_bad_fraction(
    num_rows: int, num_bad_rows: int, options: Ingest, bad_rows: Path, root: Path
) -> None:
    fraction = num_bad_rows / max(num_rows + num_bad_rows, 1)
    if num_bad_rows:
        first = pl.scan_parquet(bad_rows).head(1).collect().row(0, named=True)
        example = f"{first['file']} line {first['line']:,}: {first['reason']}"
        log.info(
            f"{num_bad_rows:,} malformed rows ({fraction:.2%}) quarantined, the first: {example}"
        )
    if fraction > options.max_bad_fraction:
        kept = root / "runs" / BAD_ROWS_FILE
        kept.parent.mkdir(exist_ok=True)
        bad_rows.replace(kept)
        raise DataError(
            f"{num_bad_rows:,} of {num_rows + num_bad_rows:,} rows are malformed ({fraction:.2%}, ingest.max_bad_fraction is "
            f"{options.max_bad_fraction:.2%}); the first: {example}. See {kept}, mend the log or raise the limit"
        )
