"""Columns as a format holds them to the schema's types. Every line comes out once: as a row, or as a bad row with its number and reason."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from features.ingest.readers.column_types import Column, raw_columns
from features.schema.schema import Schema

BAD_ROWS = {"line": pl.UInt64, "reason": pl.String, "raw": pl.Binary}
QUOTED_CHARS = 50  # of a value, in a reason


@dataclass(frozen=True)
class Parsed:
    """rows: the schema's columns but ignored ones, of the types that typed_columns tells; lines: their line numbers (u64).

    bad: the other lines, as columns line (u64), reason, raw (the line's bytes). read_bytes: how far into the file all of them end.
    """

    rows: pl.DataFrame
    lines: pl.Series
    bad: pl.DataFrame
    read_bytes: int

    @property
    def num_lines(self) -> int:
        return self.rows.height + self.bad.height


def joined(pieces: list[Parsed]) -> Parsed:
    """One piece of several, in the order of the lines."""
    lines = pl.concat([one.lines for one in pieces])
    order = lines.arg_sort()
    rows, bad = pl.concat([one.rows for one in pieces]), pl.concat([one.bad for one in pieces])
    return Parsed(rows[order], lines[order], bad.sort("line"), pieces[-1].read_bytes)


def typed_columns(schema: Schema) -> dict[str, pl.DataType]:
    """The columns of a parsed row, labelled, in the schema's order."""
    return {column.name: column.dtype for column in raw_columns(schema, labelled=True)}


def parse(
    found: pl.DataFrame,
    columns: list[Column],
    lines: pl.Series,
    raw: Callable[[list[int]], list[bytes]],
    read_bytes: int,
    reasons: pl.Series | None = None,
) -> Parsed:
    """Typed rows of a frame that has a row for each of the lines, and a column for each of `columns` that Column.read can read.

    lines: their numbers (u64); raw: gives the bytes of some, 0 being the first; reasons: why a line is no row, null where it may be one.
    """
    dtypes = found.schema
    rows = found.select(column.read(dtypes[column.name]) for column in columns)
    # a value that was there and is not any more could not be read; clean pieces pay only for this comparison
    unreadable = [
        column
        for column in columns
        if rows[column.name].null_count() > _expected_nulls(found, column)
    ]
    if not unreadable and reasons is None:
        return Parsed(rows, lines, pl.DataFrame(schema=BAD_ROWS), read_bytes)
    faults = [_fault(found[column.name], rows[column.name], column) for column in unreadable]
    reason = pl.select(pl.coalesce([*([] if reasons is None else [reasons]), *faults])).to_series()
    is_bad = reason.is_not_null()
    bad = pl.DataFrame({"line": lines, "reason": reason}).filter(is_bad)
    bytes_of_bad = pl.Series("raw", raw(is_bad.arg_true().to_list()), dtype=pl.Binary)
    return Parsed(
        rows.filter(~is_bad), lines.filter(~is_bad), bad.with_columns(bytes_of_bad), read_bytes
    )


def line_numbers(first_line: int, num_lines: int) -> pl.Series:
    return pl.int_range(first_line, first_line + num_lines, dtype=pl.UInt64, eager=True).alias(
        "line"
    )


def without_tokens(found: pl.DataFrame, null_tokens: list[str]) -> pl.DataFrame:
    """The frame with nulls for text that stands for one."""
    text = [name for name, dtype in found.schema.items() if dtype == pl.String]
    return (
        found.with_columns(
            pl.when(~pl.col(name).is_in(null_tokens)).then(pl.col(name)) for name in text
        )
        if null_tokens
        else found
    )


def _expected_nulls(found: pl.DataFrame, column: Column) -> int:
    """Nulls if all that is there can be read; a label has to be there."""
    return 0 if column.kind == "label" else found[column.name].null_count()


def _fault(found: pl.Series, rows: pl.Series, column: Column) -> pl.Expr:
    """What is wrong with this column of each line, null where nothing is."""
    is_lost = rows.is_null() if column.kind == "label" else rows.is_null() & found.is_not_null()
    value = found.cast(pl.String).fill_null("").str.slice(0, QUOTED_CHARS)
    return pl.when(is_lost).then(
        pl.concat_str(pl.lit(f"{column.name}: '"), value, pl.lit(f"' is not {column.wanted}"))
    )
