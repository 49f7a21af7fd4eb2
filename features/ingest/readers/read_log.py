"""The entry to the readers: a log file of any format as validated rows, piece by piece."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl

from common.config.loading import shorten
from common.files import DataError
from features.ingest.readers import columnar_log, delimited_text, json_lines
from features.ingest.readers.blocks import LF, NoRowsError, max_text_bytes, read_blocks
from features.ingest.readers.column_types import columns_to_read
from features.ingest.readers.contents import COLUMNAR_NAMES
from features.ingest.readers.row_validation import ValidatedRows, replace_null_tokens
from features.schema.schema import Partitions, Schema, TextFormat

READERS = {
    "text": delimited_text,
    "json_lines": json_lines,
    **dict.fromkeys(COLUMNAR_NAMES, columnar_log),
}


def read_log(
    path: Path,
    schema: Schema,
    *,
    labelled: bool,
    short_rows: str,
    partitions: Partitions | None = None,
) -> Iterator[ValidatedRows]:
    """Yield the rows of a log file in pieces of bounded size, in file order.

    Args:
        path: The log file.
        schema: Its schema.
        labelled: Whether the log has the label.
        short_rows: What becomes of lines of a text log with too few fields: `fill` makes the
            missing fields null, `quarantine` makes the line a bad row.
        partitions: The values of the columns of the schema that are not in the file.

    Raises:
        NoRowsError: The file has no rows.
        DataError: A partition is no value of its column, no row of the first piece fits the
            schema, or the file cannot be read at all.
    """
    has_rows = False
    reader = READERS[schema.format.kind]
    complete = _completion(path, schema, labelled, partitions or {})
    in_file = schema.without(partitions or {})
    for piece in reader.read(path, in_file, labelled=labelled, short_rows=short_rows):
        if not has_rows and piece.num_lines and piece.rows.is_empty():
            first = piece.bad_rows.row(0, named=True)
            raise DataError(
                f"{path}: none of its first {piece.num_lines:,} lines can be read; "
                f"line {first['line']}: {first['reason']}. "
                "Is data.schema the schema of this log, and is it right?"
            )
        has_rows = has_rows or piece.num_lines > 0
        yield complete(piece)
    if not has_rows:
        raise NoRowsError(f"{path} has no rows; remove it from data.source or fetch it again")


def _completion(
    path: Path, schema: Schema, labelled: bool, partitions: Partitions
) -> Callable[[ValidatedRows], ValidatedRows]:
    """Return the function that adds the columns of partitions to what was read.

    Raises:
        DataError: A value is not one of its column.
    """
    columns = columns_to_read(schema, labelled=labelled)
    given = [column for column in columns if column.name in partitions]
    if not given:
        return lambda piece: piece
    values = []
    for column in given:
        text = pl.DataFrame({column.name: partitions[column.name]}, {column.name: pl.String})
        text = replace_null_tokens(text, schema.format.null_tokens)
        conversion = column.conversion_from(pl.String())
        assert conversion is not None  # every kind of column can be read from text
        value = text.select(conversion)
        if value[column.name].null_count() and (column.is_required or _has_value(text)):
            raise DataError(
                f"{path}: {column.name}={shorten(str(partitions[column.name]))} in its path is not "
                f"{column.expected}; correct the schema or the name of the folder"
            )
        values.append(pl.lit(value[column.name]).first().alias(column.name))
    names = [column.name for column in columns]
    return lambda piece: replace(piece, rows=piece.rows.with_columns(values).select(names))


def _has_value(text: pl.DataFrame) -> bool:
    return not text.to_series().has_nulls()


def max_rows(
    path: Path, schema: Schema, short_rows: str, partitions: Partitions | None = None
) -> int:
    """Return a number of rows that a labelled log file cannot exceed; bad rows do not count.

    It follows from the size of the file: each row has a line end, a label and, unless short rows
    are filled, all separators. A columnar file says how many rows it has.

    Raises:
        DataError: The file should be a columnar file and is not.
    """
    if schema.format.kind in COLUMNAR_NAMES:
        return columnar_log.num_rows(path, schema)
    min_bytes = len("1\n")
    if schema.format.kind == "json_lines":
        min_bytes = len(f'{{"{schema.label}":1}}\n')
    elif short_rows != "fill":
        in_file = schema.without(partitions or {})
        has_header = isinstance(schema.format, TextFormat) and schema.format.header
        # With a header, ignored columns may be absent.
        min_bytes = len(in_file.used if has_header else in_file.names) + 1
    return max_text_bytes(path) // min_bytes + 1  # the last line may have no line end


def has_label(path: Path, schema: Schema, partitions: Partitions | None = None) -> bool:
    """Return whether a log has the label: by its header, keys, columns or number of fields.

    Raises:
        DataError: The file is not a log of this schema.
    """
    in_file = schema.without(partitions or {})
    result: bool = READERS[schema.format.kind].has_label(path, in_file)
    return result


def write_head(path: Path, schema: Schema, num_rows: int, target: Path) -> None:
    """Write the first rows of a log as a log of their own.

    The head of a compressed log is plain text, and that of a columnar log has only the columns that
    are read. It has fewer rows than asked for where the log, its first block of text or its first
    batch of columns has fewer.

    Args:
        path: The log file.
        schema: Its schema.
        num_rows: The number of rows to write.
        target: The file to write.
    """
    if schema.format.kind in COLUMNAR_NAMES:
        columnar_log.write_head(path, schema, num_rows, target)
        return
    has_header = isinstance(schema.format, TextFormat) and schema.format.header
    num_lines = num_rows + 1 if has_header else num_rows
    with target.open("wb") as head:
        head.writelines(line + LF for line in next(read_blocks(path)).lines()[:num_lines])
