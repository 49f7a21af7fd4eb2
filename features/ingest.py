"""Raw log files to Parquet, one file each: typed columns, bounded memory, and every malformed row kept with its reason."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import polars as pl
import pyarrow as pa

from features.collect import RAW, Manifest
from features.files import DataError, read_json, replaced, sha256_file, write_json
from features.log import read_log
from features.params import Ingest, Params
from features.parquet import Writer
from features.parse import BAD_ROWS, typed_columns
from features.progress import Progress
from features.schema import Schema, load_schema

PARQUET = Path("artifacts/parquet")
BAD_ROWS_FILE = "bad_rows.parquet"
ROW_GROUP_ROWS = 131_072


def ingest(params: Params, root: Path) -> None:
    """artifacts/raw to artifacts/parquet: a Parquet file (a shard) per log file, bad_rows.parquet, and manifest.json with the counts.

    A log file that was ingested before, alike, is not read again: its shard is taken over as it is. A file that holds the same rows as
    another one is reported and left out. Raises DataError for a file that is no log at all, and when more than
    ingest.max_bad_fraction of the rows are malformed; the malformed rows are then left in logs/bad_rows.parquet.
    """
    raw, target = root / RAW, root / PARQUET
    manifest = Manifest.read(raw)
    schema = load_schema(params.data.schema_name)
    made_by = _made_by(schema, params.ingest)
    known = _known_shards(target, made_by)
    new = [entry for entry in manifest.files if entry.sha256 not in known]
    shards: list[Shard] = []
    with replaced(target) as scratch, Progress("ingest", None, root) as progress:
        scratch.mkdir()
        reader = Reader(schema, params.ingest, progress, sum(entry.bytes for entry in new))
        with Writer(scratch / BAD_ROWS_FILE, pl.Schema({"file": pl.String, **BAD_ROWS})) as bad_writer:
            for entry in manifest.files:
                if old := known.get(entry.sha256):
                    shard = _take_over(old, entry.name, target, scratch, bad_writer)
                else:
                    shard = reader.ingest(raw / entry.name, entry.sha256, scratch, bad_writer)
                shards.append(_unless_twice(shard, shards, scratch))
        used = [shard for shard in shards if shard.same_rows_as is None]
        total = {"num_rows": sum(shard.num_rows for shard in used), "num_bad_rows": sum(shard.num_bad_rows for shard in used)}
        _check_bad_fraction(total["num_rows"], total["num_bad_rows"], params.ingest, scratch / BAD_ROWS_FILE, root)
        files = [asdict(shard) for shard in shards]
        write_json(scratch / "manifest.json", {"schema": params.data.schema_name, "made_by": made_by, "files": files, **total})
    if len(new) < len(shards):
        print(f"ingest    {len(shards) - len(new)} files known from before, not read again", flush=True)


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


def used_shards(root: Path) -> list[Shard]:
    """The shards whose rows count, in time order."""
    shards = [Shard(**file) for file in read_json(root / PARQUET / "manifest.json")["files"]]
    return [shard for shard in shards if shard.same_rows_as is None]


def _made_by(schema: Schema, options: Ingest) -> str:
    """A hash of all that decides a shard's bytes beside its log file: code, libraries, declaration, dialect."""
    code = [sha256_file(Path(__file__).with_name(name)) for name in ("ingest.py", "lines.py", "log.py", "parse.py", "parquet.py")]
    declared = schema.model_dump(mode="json", exclude={"sample"})
    return hashlib.sha256(json.dumps([code, pl.__version__, pa.__version__, declared, options.short_rows]).encode()).hexdigest()


def _known_shards(target: Path, made_by: str) -> dict[str, Shard]:
    """By their log file's SHA-256, the shards of the last run that are still what would be made."""
    path = target / "manifest.json"
    manifest = read_json(path) if path.exists() else {}
    if manifest.get("made_by") != made_by:
        return {}
    shards = [Shard(**file) for file in manifest["files"]]
    return {shard.sha256: shard for shard in shards if shard.same_rows_as is None and _is_whole(target / shard.parquet, shard)}


def _is_whole(path: Path, shard: Shard) -> bool:
    return path.exists() and sha256_file(path) == shard.parquet_sha256


def _take_over(old: Shard, name: str, target: Path, scratch: Path, bad_writer: Writer) -> Shard:
    """The shard itself, not a copy, and its bad rows; under the name that its log file has now."""
    shard = replace(old, name=name, parquet=f"{name}.parquet")
    os.link(target / old.parquet, scratch / shard.parquet)
    if old.num_bad_rows:
        bad = pl.scan_parquet(target / BAD_ROWS_FILE).filter(pl.col("file") == old.name).collect()
        bad_writer.write(bad.with_columns(pl.lit(name).alias("file")))
    return shard


def _unless_twice(shard: Shard, before: list[Shard], scratch: Path) -> Shard:
    """The shard, or the note that an earlier file holds the same rows."""
    first = next((other.name for other in before if other.parquet_sha256 == shard.parquet_sha256 and not other.same_rows_as), None)
    if first is None:
        return shard
    print(f"ingest    {shard.name} holds the same rows as {first}: left out; remove it from data.source", flush=True)
    (scratch / shard.parquet).unlink(missing_ok=True)
    return replace(shard, same_rows_as=first)


@dataclass
class Reader:
    """Reads new log files of num_bytes in all, one after the other."""

    schema: Schema
    options: Ingest
    progress: Progress
    num_bytes: int
    read_bytes: int = 0

    def ingest(self, source: Path, sha256: str, target: Path, bad_writer: Writer) -> Shard:
        """One log file to target/NAME.parquet, its malformed rows to bad_writer."""
        parquet = target / f"{source.name}.parquet"
        num_rows = num_bad_rows = 0
        with Writer(parquet, pl.Schema(typed_columns(self.schema)), ROW_GROUP_ROWS) as writer:
            for block, parsed in read_log(source, self.schema, labelled=True, short_rows=self.options.short_rows):
                writer.write(parsed.rows)
                num_rows += parsed.rows.height
                num_bad_rows += parsed.bad.height
                bad_writer.write(parsed.bad.select(pl.lit(source.name).alias("file"), pl.all()))
                # rows in all, from the share of the bytes read so far
                read_bytes = max(self.read_bytes + block.read_bytes, 1)
                self.progress.total_rows = int((self.progress.num_rows + block.num_lines) * self.num_bytes / read_bytes)
                self.progress.update(block.num_lines)
        self.read_bytes += source.stat().st_size
        return Shard(source.name, sha256, parquet.name, sha256_file(parquet), num_rows, num_bad_rows, None)


def _check_bad_fraction(num_rows: int, num_bad_rows: int, options: Ingest, bad_rows: Path, root: Path) -> None:
    fraction = num_bad_rows / (num_rows + num_bad_rows)
    if num_bad_rows:
        first = pl.scan_parquet(bad_rows).head(1).collect().row(0, named=True)
        example = f"{first['file']} line {first['line']:,}: {first['reason']}"
        print(f"ingest    {num_bad_rows:,} malformed rows ({fraction:.2%}) quarantined, the first: {example}", flush=True)
    if fraction > options.max_bad_fraction:
        kept = root / "logs" / BAD_ROWS_FILE
        kept.parent.mkdir(exist_ok=True)
        bad_rows.replace(kept)
        raise DataError(
            f"{num_bad_rows:,} of {num_rows + num_bad_rows:,} rows are malformed ({fraction:.2%}, ingest.max_bad_fraction is "
            f"{options.max_bad_fraction:.2%}); the first: {example}. See {kept}, mend the log or raise the limit"
        )
