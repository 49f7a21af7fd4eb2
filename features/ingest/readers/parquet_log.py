"""The reader of Parquet logs, whose rows are numbered from 1, as the lines of other logs are.

It only reads columns; `row_validation` decides which rows are malformed.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from common.files import DataError
from features.ingest.readers.column_types import Column, columns_to_read
from features.ingest.readers.row_validation import (
    ValidatedRows,
    number_lines,
    replace_null_tokens,
    validate_rows,
)
from features.schema.schema import Schema

BATCH_ROWS = 32_768
MAX_LISTED_CHARS = 500  # of column names, in an error message


def read(path: Path, schema: Schema, *, labelled: bool, short_rows: str) -> Iterator[ValidatedRows]:
    """Yield a log's rows, batch by batch. See `read_log.read_log` for the arguments.

    A Parquet file has no short rows, so `short_rows` has no effect.

    Raises:
        DataError: The file is not Parquet or is broken, a column is missing, or a column has a type
            that cannot contain the values that the schema expects.
    """
    columns = columns_to_read(schema, labelled=labelled)
    names = [column.name for column in columns]
    num_bytes = path.stat().st_size
    first_row = 1
    with path.open("rb") as source:
        file = _open(source, path)
        _check_columns(columns, file.schema_arrow, path)
        num_rows_of_file = max(file.metadata.num_rows, 1)
        try:
            for batch in file.iter_batches(BATCH_ROWS, columns=names):
                batch.validate(full=True)  # without this, text that is not UTF-8 is accepted
                frame = _with_plain_text(pl.DataFrame(pl.from_arrow(batch)))
                num_rows_read = first_row - 1 + frame.height
                yield validate_rows(
                    replace_null_tokens(frame, schema.format.null_tokens),
                    columns,
                    number_lines(first_row, frame.height),
                    partial(_rows_as_json, frame),
                    num_bytes * num_rows_read // num_rows_of_file,
                )
                first_row += frame.height
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: broken Parquet after row {first_row - 1:,} ({error}); "
                "fetch the file again"
            ) from None


def has_label(path: Path, schema: Schema) -> bool:
    """Return whether the file has the label's column."""
    with path.open("rb") as source:
        return schema.label in _open(source, path).schema_arrow.names


def num_rows(path: Path) -> int:
    """Return the number of rows that the file's footer gives."""
    with path.open("rb") as source:
        return int(_open(source, path).metadata.num_rows)


def write_head(path: Path, num_rows: int, target: Path) -> None:
    """Write a log's first rows, with all columns, as a log; see `read_log.write_head`."""
    with path.open("rb") as source:
        first = next(_open(source, path).iter_batches(num_rows))
    pq.write_table(pa.Table.from_batches([first]), target)


def _open(source: object, path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is no Parquet file ({error}); fetch it again or correct data.schema"
        ) from None


def _check_columns(columns: list[Column], schema: pa.Schema, path: Path) -> None:
    missing = [column.name for column in columns if column.name not in schema.names]
    if missing:
        present = ", ".join(schema.names)[:MAX_LISTED_CHARS]
        raise DataError(f"{path}: no column {', '.join(missing)}; it has {present}")
    for column in columns:
        arrow_type = schema.field(column.name).type
        no_rows = pa.table({column.name: pa.nulls(0, arrow_type)})
        dtype = _with_plain_text(pl.DataFrame(pl.from_arrow(no_rows))).schema[column.name]
        if column.conversion_from(dtype) is None:
            raise DataError(
                f"{path}: column {column.name} is {arrow_type}, which cannot be {column.expected}; "
                "convert it or correct the schema"
            )


def _with_plain_text(frame: pl.DataFrame) -> pl.DataFrame:
    """Convert categories (dictionary-encoded text) to plain text, also in lists.

    Lists that all have the same length become plain lists.
    """
    plain = {name: _plain(dtype) for name, dtype in frame.schema.items()}
    return frame.cast({name: dtype for name, dtype in plain.items() if dtype != frame.schema[name]})


def _plain(dtype: pl.DataType) -> pl.DataType:
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_plain(dtype.inner))  # type: ignore[arg-type]
    return dtype


def _rows_as_json(frame: pl.DataFrame, positions: list[int]) -> list[bytes]:
    return [
        json.dumps(row, default=str, ensure_ascii=False).encode()
        for row in frame[positions].iter_rows(named=True)
    ]
