"""The reader of columnar logs: Parquet, ORC and Arrow. Rows are numbered from 1, as lines are.

It only reads columns; `row_validation` decides which rows are malformed.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from common.files import DataError
from common.printable import printable
from features.ingest.readers.arrow_columns import dtype_of, plain_columns, stored_columns
from features.ingest.readers.column_names import quoted, remedy_for
from features.ingest.readers.column_types import Column, columns_to_read
from features.ingest.readers.columnar_files import (
    BATCH_ROWS,
    DAMAGE,
    ColumnarFile,
    is_list,
    is_text,
    open_columnar,
    text_lengths,
)
from features.ingest.readers.contents import COLUMNAR_NAMES
from features.ingest.readers.hex_texts import are_other_texts, hex32_of
from features.ingest.readers.row_validation import (
    ValidatedRows,
    number_lines,
    replace_null_tokens,
    validate_rows,
)
from features.schema.schema import Schema

LIST_KINDS = ("integer", "hex32", "string")  # of columns that may be lists
PIECE_BYTES = 64 << 20  # of the values of a piece that has more than one row


def read(path: Path, schema: Schema, *, labelled: bool, short_rows: str) -> Iterator[ValidatedRows]:
    """Yield a log's rows, piece by piece. See `read_log.read_log` for the arguments.

    A columnar file has no short rows, so `short_rows` has no effect.

    Raises:
        DataError: The file is of another format or is broken, a column is missing, a column has a
            type that cannot contain the values that the schema expects, or a part of the file that
            must be read at once is too large.
    """
    columns = columns_to_read(schema, labelled=labelled)
    num_bytes = path.stat().st_size
    first_row = 1
    with open_columnar(path, schema.format.kind) as file:
        _check_columns(columns, file.schema, path)
        try:
            num_rows_of_file = max(file.num_rows, 1)
            for piece in _pieces(file, [column.name for column in columns]):
                with_numbers = _with_hex_numbers(piece, columns, schema.format.null_tokens)
                frame, reasons = plain_columns(_without_dictionaries(with_numbers))
                num_rows_read = first_row - 1 + frame.height
                yield validate_rows(
                    replace_null_tokens(frame, schema.format.null_tokens),
                    columns,
                    number_lines(first_row, frame.height),
                    partial(_rows_as_json, piece),
                    num_bytes * num_rows_read // num_rows_of_file,
                    reasons,
                )
                first_row += frame.height
        except DAMAGE as error:
            raise _broken(path, schema, first_row - 1, error) from None


def has_label(path: Path, schema: Schema) -> bool:
    """Return whether the file has the label's column."""
    with open_columnar(path, schema.format.kind) as file:
        return schema.label in file.schema.names


def num_rows(path: Path, schema: Schema) -> int:
    """Return the number of rows that the file says it has."""
    with open_columnar(path, schema.format.kind) as file:
        try:
            return file.num_rows
        except DAMAGE as error:
            raise _broken(path, schema, 0, error) from None


def write_head(path: Path, schema: Schema, num_rows: int, target: Path) -> None:
    """Write a log's first rows, with the columns that are read, as a log of the same format."""
    columns = columns_to_read(schema, labelled=has_label(path, schema))
    with open_columnar(path, schema.format.kind) as file:
        _check_columns(columns, file.schema, path)
        try:
            first = next(_pieces(file, [column.name for column in columns]), None)
        except DAMAGE as error:
            raise _broken(path, schema, 0, error) from None
        if first is None:
            raise DataError(f"{path} has no rows; fetch the file again")
        head = _without_dictionaries(first.slice(0, num_rows))
        file.write(pa.Table.from_batches([head]), target)


def _broken(path: Path, schema: Schema, num_rows: int, error: Exception) -> DataError:
    _, _, name = COLUMNAR_NAMES[schema.format.kind].partition(" ")
    return DataError(
        f"{path}: broken {name} after row {num_rows:,} ({printable(str(error))}); "
        "fetch the file again"
    )


def _pieces(file: ColumnarFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a file in pieces of at most BATCH_ROWS rows and about PIECE_BYTES.

    So few rows are in a piece that the values of its dictionaries can be written out.
    """
    for batch in file.batches(names):
        selected = batch.select(names)
        selected.validate(full=True)  # without this, text that is not UTF-8 is accepted
        for start in range(0, selected.num_rows, BATCH_ROWS):
            rows = selected.slice(start, BATCH_ROWS)
            for first, end in _cuts(rows):
                yield rows.slice(first, end - first)


def _with_hex_numbers(
    piece: pa.RecordBatch, columns: list[Column], null_tokens: list[str]
) -> pa.RecordBatch:
    """Read the texts of columns of hex digits, if all of a column's texts are hex digits.

    It takes a fraction of the time that Polars needs, which reads all other texts.
    """
    if not are_other_texts(null_tokens):
        return piece
    arrays = []
    for column, array in zip(columns, piece.columns, strict=True):
        numbers = hex32_of(array) if column.kind == "hex32" and not column.is_list else None
        arrays.append(array if numbers is None else numbers)
    return pa.RecordBatch.from_arrays(arrays, piece.schema.names)


def _cuts(rows: pa.RecordBatch) -> list[tuple[int, int]]:
    """Cut rows where their texts would have more than PIECE_BYTES together."""
    if sum(map(_most_bytes, rows.columns)) <= PIECE_BYTES:
        return [(0, rows.num_rows)]
    bytes_N = np.zeros(rows.num_rows, np.int64)
    for column in rows.columns:
        if pa.types.is_dictionary(column.type) and is_text(column.type):
            indices_N = np.asarray(column.indices.fill_null(0), np.int64)
            lengths_D = text_lengths(column.dictionary)
            bytes_N += lengths_D[indices_N] if len(lengths_D) else 0
        elif is_text(column.type):
            bytes_N += text_lengths(column)
        elif is_list(column.type):
            num_values_N = pc.call_function("list_value_length", [column])
            if column.null_count:
                num_values_N = num_values_N.fill_null(0)
            bytes_N += np.asarray(num_values_N, np.int64) * _bytes_of_value(column)
    if bytes_N.sum() <= PIECE_BYTES:
        return [(0, rows.num_rows)]
    end_N = np.cumsum(bytes_N)
    cuts, first = [], 0
    while first < len(end_N):
        limit = PIECE_BYTES + (end_N[first - 1] if first else 0)
        end = max(int(np.searchsorted(end_N, limit, "right")), first + 1)
        cuts.append((first, end))
        first = end
    return cuts


def _most_bytes(column: pa.Array) -> int:
    """Return a number of bytes that the texts and lists of a column cannot exceed."""
    if pa.types.is_dictionary(column.type) and is_text(column.type):
        return int(text_lengths(column.dictionary).max(initial=0)) * len(column)
    if is_text(column.type):
        return int(text_lengths(column).sum())
    return int(column.nbytes) if is_list(column.type) else 0


def _bytes_of_value(lists: pa.Array) -> int:
    """Return the mean number of bytes of a value in lists."""
    values = lists.flatten()
    return int(values.nbytes) // max(len(values), 1)


def _without_dictionaries(rows: pa.RecordBatch) -> pa.RecordBatch:
    columns = [
        _decoded(column) if pa.types.is_dictionary(column.type) else column
        for column in rows.columns
    ]
    return pa.RecordBatch.from_arrays(columns, rows.schema.names)


def _decoded(column: pa.DictionaryArray) -> pa.Array:
    value_type = column.type.value_type
    if not (pa.types.is_string_view(value_type) or pa.types.is_binary_view(value_type)):
        return column.dictionary_decode()
    # pyarrow cannot choose values of these types, which Polars writes.
    values = pl.Series(pl.from_arrow(column.dictionary))
    return values.gather(pl.Series(pl.from_arrow(column.indices))).to_arrow()


def _check_columns(columns: list[Column], schema: pa.Schema, path: Path) -> None:
    missing = [column.name for column in columns if column.name not in schema.names]
    if missing:
        raise DataError(
            f"{path}: no column {quoted(missing)}; it has {quoted(schema.names)}. "
            f"{remedy_for(missing, [])}"
        )
    for column in columns:
        if schema.names.count(column.name) > 1:
            raise DataError(f"{path}: several columns {column.name!r}; give each a name of its own")
        arrow_type = schema.field(column.name).type
        dtype = dtype_of(arrow_type)
        if dtype is None or column.conversion_from(dtype) is None:
            remedy = "convert it or correct the schema"
            if is_list(arrow_type) and not column.is_list and column.kind in LIST_KINDS:
                remedy = "convert it or declare it with list: {pooling: ..., max_length: ...}"
            raise DataError(
                f"{path}: column {column.name} is {arrow_type}, which cannot be {column.expected}; "
                f"{remedy}"
            )


def _rows_as_json(piece: pa.RecordBatch, positions: list[int]) -> list[bytes]:
    return [
        json.dumps(row, default=_as_text, ensure_ascii=False).encode()
        for row in stored_columns(_without_dictionaries(piece))[positions].iter_rows(named=True)
    ]


def _as_text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
