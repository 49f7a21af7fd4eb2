"""The entry to the readers: a log file of any format as validated rows, piece by piece."""

from collections.abc import Iterator
from pathlib import Path

from common.files import DataError
from features.ingest.readers import columnar_log, delimited_text, json_lines
from features.ingest.readers.blocks import LF, NoRowsError, max_text_bytes, read_blocks
from features.ingest.readers.contents import COLUMNAR_NAMES
from features.ingest.readers.row_validation import ValidatedRows
from features.schema.schema import Schema, TextFormat

READERS = {
    "text": delimited_text,
    "json_lines": json_lines,
    **dict.fromkeys(COLUMNAR_NAMES, columnar_log),
}


def read_log(
    path: Path, schema: Schema, *, labelled: bool, short_rows: str
) -> Iterator[ValidatedRows]:
    """Yield the rows of a log file in pieces of bounded size, in file order.

    Args:
        path: The log file.
        schema: Its schema.
        labelled: Whether the log has the label.
        short_rows: What becomes of lines of a text log with too few fields: `fill` makes the
            missing fields null, `quarantine` makes the line a bad row.

    Raises:
        NoRowsError: The file has no rows.
        DataError: No row of the first piece fits the schema, or the file cannot be read at all.
    """
    has_rows = False
    reader = READERS[schema.format.kind]
    for piece in reader.read(path, schema, labelled=labelled, short_rows=short_rows):
        if not has_rows and piece.num_lines and piece.rows.is_empty():
            first = piece.bad_rows.row(0, named=True)
            raise DataError(
                f"{path}: none of its first {piece.num_lines:,} lines can be read; "
                f"line {first['line']}: {first['reason']}. "
                "Is data.schema the schema of this log, and is it right?"
            )
        has_rows = has_rows or piece.num_lines > 0
        yield piece
    if not has_rows:
        raise NoRowsError(f"{path} has no rows; remove it from data.source or fetch it again")


def max_rows(path: Path, schema: Schema, short_rows: str) -> int:
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
        min_bytes = len(schema.names) + 1
    return max_text_bytes(path) // min_bytes + 1  # the last line may have no line end


def has_label(path: Path, schema: Schema) -> bool:
    """Return whether a log has the label: by its header, keys, columns or number of fields.

    Raises:
        DataError: The file is not a log of this schema.
    """
    result: bool = READERS[schema.format.kind].has_label(path, schema)
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
