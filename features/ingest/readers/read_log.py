"""A log file as typed rows, piece by piece, whatever its format."""

from collections.abc import Iterator
from pathlib import Path

from common.files import DataError
from features.ingest.readers import delimited_text, json_lines, parquet_log
from features.ingest.readers.blocks import LF, read_blocks
from features.ingest.readers.row_validation import Parsed
from features.schema.schema import Schema

FORMATS = {"text": delimited_text, "json_lines": json_lines, "parquet": parquet_log}


def read_log(path: Path, schema: Schema, *, labelled: bool, short_rows: str) -> Iterator[Parsed]:
    """A log file in pieces of bounded size, in file order. short_rows: "fill" or "quarantine", of text.

    Raises DataError when not one of the first piece's lines fits the schema, and for a log without rows.
    """
    is_empty = True
    for parsed in FORMATS[schema.format.kind].read(
        path, schema, labelled=labelled, short_rows=short_rows
    ):
        if is_empty and parsed.rows.is_empty() and parsed.num_lines:
            first = parsed.bad.row(0, named=True)
            fault = f"line {first['line']}: {first['reason']}"
            raise DataError(
                f"{path}: none of its first {parsed.num_lines:,} lines can be read; {fault}. Is data.schema right, and all it says?"
            )
        is_empty = is_empty and not parsed.num_lines
        yield parsed
    if is_empty:
        raise DataError(f"{path} has no rows; remove it from data.source or fetch it again")


def has_label(path: Path, schema: Schema) -> bool:
    """Whether a log has the label: by its header, keys or Parquet schema, or by how many columns there are.

    Raises DataError for what is no such log.
    """
    found: bool = FORMATS[schema.format.kind].has_label(path, schema)
    return found


def write_head(path: Path, schema: Schema, num_rows: int, target: Path) -> None:
    """The log's first rows, as they stand in it, as a log of its own: plain text where it was gzip. Fewer where lines are very long."""
    if schema.format.kind == "parquet":
        parquet_log.write_head(path, num_rows, target)
        return
    header = getattr(schema.format, "header", False)
    with target.open("wb") as head:
        head.writelines(line + LF for line in next(read_blocks(path)).lines()[: num_rows + header])
