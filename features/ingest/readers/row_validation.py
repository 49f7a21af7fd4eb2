"""The decision which rows of a log are malformed, and the reason for each of them.

The readers of the formats only split a log into columns, one for each column of the schema, and
give a reason where a line cannot be split or has a value of a wrong JSON type. `validate_rows`
decides: a row is bad if it has such a reason, if a value cannot be converted to the dtype of its
column (`Column.conversion_from`), if the label, the sample weight or the time that gives its day is
missing, or if a list has another number of weights than of values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from common.printable import printable
from features.ingest.readers.column_types import Column, columns_to_read
from features.list_values import lengths_of, values_of
from features.schema.listed_values import has_effect, is_listed
from features.schema.schema import Schema

BAD_ROWS_FILE = "bad_rows.parquet"
BAD_ROW_DTYPES = {"line": pl.UInt64, "reason": pl.String, "raw": pl.Binary}
MAX_QUOTED_CHARS = 50  # of a value, in a reason
MAX_RAW_BYTES = 1 << 16  # of a bad row that are kept


@dataclass(frozen=True)
class ValidatedRows:
    """The lines of one piece of a log, each of them once: as a row or as a bad row.

    Attributes:
        rows: The good rows, in the dtypes of `typed_columns`.
        line_numbers: Their line numbers in the log, from 1 (uint64).
        bad_rows: The other lines, with the columns `line` (uint64, the line number), `reason`
            (string) and `raw` (binary, the first MAX_RAW_BYTES bytes of the line).
        bytes_read: The number of bytes of the log file that are read up to the end of the piece.
    """

    rows: pl.DataFrame
    line_numbers: pl.Series
    bad_rows: pl.DataFrame
    bytes_read: int

    @property
    def num_lines(self) -> int:
        """The number of lines, good and bad."""
        return self.rows.height + self.bad_rows.height


def validate_rows(
    columns_as_read: pl.DataFrame,
    columns: list[Column],
    line_numbers: pl.Series,
    raw_lines_at: Callable[[list[int]], list[bytes]],
    bytes_read: int,
    split_reasons: pl.Series | None = None,
) -> ValidatedRows:
    """Convert the columns of a piece of a log and separate good rows from bad rows.

    Args:
        columns_as_read: A row for each line, and a column for each of `columns`, of a dtype that
            `Column.conversion_from` accepts. Missing values are null.
        columns: The columns of the schema that are read.
        line_numbers: The number of each line (uint64).
        raw_lines_at: Returns the bytes of the lines at some positions; 0 is the piece's first line.
        bytes_read: The number of bytes of the log file that are read up to the end of the piece.
        split_reasons: Why a line could not be split, null where it could; None if all could.
    """
    dtypes = dict(zip(columns_as_read.columns, columns_as_read.dtypes, strict=True))
    to_convert = [
        column
        for column in columns
        if not column.is_converted(dtypes[column.name])
        and not column.has_only_labels(columns_as_read[column.name])
    ]
    converted = columns_as_read[[column.name for column in columns]]
    if to_convert:
        converted = converted.with_columns(
            column.conversion_from(dtypes[column.name]) for column in to_convert
        )
    # A value that cannot be converted has become null. Without bad rows there is no more to do.
    columns_with_bad_values = [
        column
        for column in to_convert
        if converted[column.name].null_count() > _num_allowed_nulls(columns_as_read, column)
    ]
    length_reasons = [
        _reason_for_lengths(columns_as_read, column)
        for column in columns
        if column.weights_of and _num_other_lengths(columns_as_read, column)
    ]
    if not columns_with_bad_values and not length_reasons and split_reasons is None:
        no_bad_rows = pl.DataFrame(schema=BAD_ROW_DTYPES)
        return ValidatedRows(converted, line_numbers, no_bad_rows, bytes_read)
    reasons = [] if split_reasons is None else [split_reasons]
    value_reasons = [
        (_reason_for_bad_list if column.is_list else _reason_for_bad_value)(
            columns_as_read[column.name], converted[column.name], column
        )
        for column in columns_with_bad_values
    ]
    reason = pl.select(pl.coalesce([*reasons, *value_reasons, *length_reasons])).to_series()
    is_bad = reason.is_not_null()
    bad_rows = pl.DataFrame({"line": line_numbers, "reason": reason}).filter(is_bad)
    bad_rows = bad_rows.with_columns(_printable(bad_rows["reason"]))
    raw_lines = raw_lines_at(is_bad.arg_true().to_list())
    raw = pl.Series("raw", [line[:MAX_RAW_BYTES] for line in raw_lines], dtype=pl.Binary)
    return ValidatedRows(
        converted.filter(~is_bad),
        line_numbers.filter(~is_bad),
        bad_rows.with_columns(raw),
        bytes_read,
    )


def merge_by_line_number(pieces: list[ValidatedRows]) -> ValidatedRows:
    """Merge pieces whose lines alternate into one piece, in the order of the lines."""
    line_numbers = pl.concat([piece.line_numbers for piece in pieces])
    rows = pl.concat([piece.rows for piece in pieces])
    bad_rows = pl.concat([piece.bad_rows for piece in pieces])
    order = line_numbers.arg_sort()
    return ValidatedRows(
        rows[order], line_numbers[order], bad_rows.sort("line"), pieces[-1].bytes_read
    )


def typed_columns(schema: Schema) -> dict[str, pl.DataType]:
    """Return the names and dtypes of a labelled log's rows, in the order of the schema."""
    return {column.name: column.dtype for column in columns_to_read(schema, labelled=True)}


def number_lines(first_line: int, num_lines: int) -> pl.Series:
    """Return consecutive line numbers as a series `line` (uint64)."""
    end = first_line + num_lines
    return pl.int_range(first_line, end, dtype=pl.UInt64, eager=True).alias("line")


def replace_null_tokens(columns_as_read: pl.DataFrame, null_tokens: list[str]) -> pl.DataFrame:
    """Replace the values that mean a missing value (`format.null_tokens`), also in lists."""

    def without_tokens(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
        return pl.when(~is_listed(value, dtype, null_tokens)).then(value)

    # `schema` checks each dtype again, which takes long for a small log.
    dtypes = [*zip(columns_as_read.columns, columns_as_read.dtypes, strict=True)]
    inner_dtypes: dict[str, pl.DataType] = {
        name: dtype.inner if isinstance(dtype, pl.List) else dtype  # type: ignore[misc]
        for name, dtype in dtypes
    }
    changeable = {inner for inner in set(inner_dtypes.values()) if has_effect(inner, null_tokens)}
    replaced = []
    for name, dtype in dtypes:
        inner = inner_dtypes[name]
        if inner not in changeable:
            continue
        if isinstance(dtype, pl.List):
            replaced.append(pl.col(name).list.eval(without_tokens(pl.element(), inner)))
        else:
            replaced.append(without_tokens(pl.col(name), inner).alias(name))
    return columns_as_read.with_columns(replaced) if replaced else columns_as_read


def _num_allowed_nulls(columns_as_read: pl.DataFrame, column: Column) -> int:
    """Count the values that are missing in the log and may be missing."""
    return 0 if column.is_required else columns_as_read[column.name].null_count()


def _printable(reasons: pl.Series) -> pl.Series:
    """Escape what could break a line or steer a terminal; most reasons stay as they are."""
    if not reasons.str.contains("[^ -~]").any():
        return reasons
    return pl.Series(reasons.name, map(printable, reasons.to_list()), dtype=pl.String)


def _reason_for_bad_value(as_read: pl.Series, converted: pl.Series, column: Column) -> pl.Expr:
    """Say of each row why its value of a column is bad; null where the value is good."""
    is_bad = converted.is_null()
    if not column.is_required:
        is_bad &= as_read.is_not_null()
    value = as_read.cast(pl.String).fill_null("").str.slice(0, MAX_QUOTED_CHARS)
    return pl.when(is_bad).then(
        pl.concat_str(pl.lit(f"{column.name}: '"), value, pl.lit(f"' is not {column.expected}"))
    )


def _reason_for_bad_list(as_read: pl.Series, converted: pl.Series, column: Column) -> pl.Expr:
    """Say of each row which value of its list is the first bad one; null where all are good."""
    rows = (converted.is_null() & as_read.is_not_null()).arg_true()
    lists = as_read[rows]
    values, lengths = values_of(lists), lengths_of(lists)
    _, is_bad = column.bad_values(values)
    row_of_value = np.repeat(np.arange(len(rows)), lengths)
    bad_values = np.flatnonzero(is_bad.to_numpy())
    _, first = np.unique(row_of_value[bad_values], return_index=True)  # each row has one
    positions = bad_values[first]
    numbers = positions - (np.cumsum(lengths) - lengths) + 1
    texts = values[positions].cast(pl.String).str.slice(0, MAX_QUOTED_CHARS)
    reasons: list[str | None] = [None] * len(as_read)
    for row, number, text in zip(rows, numbers, texts, strict=True):
        value = "null" if text is None else f"'{text}'"
        reasons[row] = f"{column.name}: value {number} of the list, {value}, is not " + (
            column.value.expected
        )
    return pl.lit(pl.Series(reasons, dtype=pl.String))


def _num_other_lengths(columns_as_read: pl.DataFrame, weights: Column) -> int:
    """Count the lists that have another number of weights than of values."""
    num_values = lengths_of(columns_as_read[weights.weights_of])
    return int((lengths_of(columns_as_read[weights.name]) != num_values).sum())


def _reason_for_lengths(columns_as_read: pl.DataFrame, weights: Column) -> pl.Expr:
    """Say of each row that its list has another number of weights; null where it has not."""
    num_weights = pl.Series(lengths_of(columns_as_read[weights.name]))
    num_values = pl.Series(lengths_of(columns_as_read[weights.weights_of]))
    return pl.when(num_weights != num_values).then(
        pl.concat_str(
            pl.lit(f"{weights.name}: length "),
            num_weights,
            pl.lit(f", but {weights.weights_of} has length "),
            num_values,
        )
    )
