"""Raw log files to Parquet, one file each: typed columns, bounded memory, and every malformed row kept with its reason."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from features.collect import RAW, Manifest
from features.files import DataError, replaced, write_json
from features.lines import Block, read_blocks
from features.params import Ingest, Params
from features.parquet import Writer
from features.parse import BAD_ROWS, Parsed, parse_block, typed_columns
from features.progress import Progress
from features.schema import Schema, load_schema

PARQUET = Path("artifacts/parquet")
BAD_ROWS_FILE = "bad_rows.parquet"
ROW_GROUP_ROWS = 131_072


def ingest(params: Params, root: Path) -> None:
    """artifacts/raw to artifacts/parquet: a Parquet file per log file, bad_rows.parquet, and manifest.json with the counts.

    Raises DataError for a file that is no log at all, and when more than ingest.max_bad_fraction of the rows are malformed;
    the malformed rows are then left in logs/bad_rows.parquet.
    """
    schema = load_schema(params.data.schema_name)
    raw = root / RAW
    manifest = Manifest.read(raw)
    with replaced(root / PARQUET) as scratch, Progress("ingest", None, root) as progress:
        scratch.mkdir()
        files: list[dict[str, Any]] = []
        read_before = 0
        with Writer(scratch / BAD_ROWS_FILE, pl.Schema({"file": pl.String, **BAD_ROWS})) as bad_writer:
            for entry in manifest.files:
                source = raw / entry.name
                counts = _ingest_file(source, scratch, schema, params.ingest, bad_writer, progress, (read_before, manifest.num_bytes))
                files.append({"name": entry.name, **counts})
                read_before += entry.bytes
        total = {key: sum(file[key] for file in files) for key in ("num_rows", "num_bad_rows")}
        _check_bad_fraction(total["num_rows"], total["num_bad_rows"], params.ingest, scratch / BAD_ROWS_FILE, root)
        write_json(scratch / "manifest.json", {"schema": params.data.schema_name, "files": files, **total})


def read_log(path: Path, schema: Schema, *, labelled: bool, short_rows: str) -> Iterator[tuple[Block, Parsed]]:
    """A log file block by block. Raises DataError when not one of the first block's lines fits the schema."""
    for block in read_blocks(path):
        if schema.format.header and block.first_line == 1:
            block = _without_header(block, schema.columns_of(labelled), schema.format.separator, path)
        parsed = parse_block(block, schema, labelled=labelled, fill_short_rows=short_rows == "fill")
        if block.first_line <= 2 and parsed.rows.is_empty() and block.num_lines:
            first = parsed.bad.row(0, named=True)
            fault = f"line {first['line']}: {first['reason']}"
            raise DataError(f"{path}: none of its first {block.num_lines:,} lines can be read; {fault}. Is data.schema right?")
        yield block, parsed


def _without_header(block: Block, expected: list[str], separator: str, path: Path) -> Block:
    header, _, text = block.text.partition(b"\n")
    names = header.decode("utf-8", "replace").split(separator)
    if names != expected:
        raise DataError(f"{path}: line 1: header {names} found, {expected} expected by the schema")
    return Block(text, 2, block.num_lines - 1, block.read_bytes)


def _ingest_file(
    source: Path, target: Path, schema: Schema, options: Ingest, bad_writer: Writer, progress: Progress, position: tuple[int, int]
) -> dict[str, Any]:
    """One log file to target/NAME.parquet; position: bytes of the log before this file, and in all, for the ETA."""
    name = f"{source.name}.parquet"
    read_before, total_bytes = position
    num_rows = num_bad_rows = 0
    with Writer(target / name, pl.Schema(typed_columns(schema)), ROW_GROUP_ROWS) as writer:
        for block, parsed in read_log(source, schema, labelled=True, short_rows=options.short_rows):
            writer.write(parsed.rows)
            num_rows += parsed.rows.height
            num_bad_rows += parsed.bad.height
            bad_writer.write(parsed.bad.select(pl.lit(source.name).alias("file"), pl.all()))
            # rows in the whole log, from the share of its bytes read so far
            progress.total_rows = int((progress.num_rows + block.num_lines) * total_bytes / max(read_before + block.read_bytes, 1))
            progress.update(block.num_lines)
    return {"parquet": name, "num_rows": num_rows, "num_bad_rows": num_bad_rows}


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
