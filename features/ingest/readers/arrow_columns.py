"""Columns of Arrow as Polars columns of plain values: numbers, booleans, texts and times."""

import polars as pl
import pyarrow as pa
from polars.exceptions import ComputeError

# The bytes of a UUID in hex, and where its text has hyphens.
UUID_HEX, UUID_TEXT = "^(.{8})(.{4})(.{4})(.{4})(.{12})$", "$1-$2-$3-$4-$5"


def plain_columns(batch: pa.RecordBatch) -> tuple[pl.DataFrame, pl.Series | None]:
    """Convert a batch to Polars.

    Dictionaries become their values, UUIDs their text, and binary columns text.

    Returns:
        The columns.
        The reason why a row has a binary value that is no text; null where there is none. None if
        there is none in the batch. Such a value is null in the columns.
    """
    columns, reasons = [], []
    for column in stored_columns(batch):
        name = column.name
        if column.dtype == pl.Binary:
            column, is_bad = _decoded(column)
            if is_bad.any():
                reason = pl.lit(f"{name}: binary that is not UTF-8, text expected")
                reasons.append(pl.select(pl.when(is_bad).then(reason)).to_series())
        columns.append(column)
    all_reasons = pl.select(pl.coalesce(reasons)).to_series() if reasons else None
    return pl.DataFrame(columns), all_reasons


def stored_columns(batch: pa.RecordBatch) -> pl.DataFrame:
    """Convert a batch to Polars as `plain_columns` does, but leave binary columns as they are."""
    return pl.DataFrame(
        [
            _plain(array).alias(name)
            for name, array in zip(batch.schema.names, batch.columns, strict=True)
        ]
    )


def dtype_of(arrow_type: pa.DataType) -> pl.DataType | None:
    """Return the dtype that `plain_columns` gives a column of this type; None if it cannot."""
    if pa.types.is_decimal256(arrow_type):
        return None
    column = _plain(pa.nulls(0, arrow_type))
    return pl.String() if column.dtype == pl.Binary else column.dtype


def _plain(array: pa.Array) -> pl.Series:
    """Convert an array to Polars; only binary values are not plain yet."""
    if isinstance(array.type, pa.UuidType):
        as_hex = pl.Series(pl.from_arrow(array.storage)).bin.encode("hex")
        return as_hex.str.replace(UUID_HEX, UUID_TEXT)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_timestamp(array.type) and array.type.tz is not None:
        # The numbers are in UTC. The zone is only for display, and Polars does not know all.
        array = array.cast(pa.timestamp(array.type.unit, "UTC"))
    column = pl.Series(pl.from_arrow(array))
    is_text = isinstance(column.dtype, pl.Categorical | pl.Enum)
    return column.cast(pl.String) if is_text else column


def _decoded(column: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Decode binary values as UTF-8, and return which of them are no UTF-8; they become null."""
    try:
        return column.cast(pl.String), pl.repeat(False, len(column), eager=True)
    except ComputeError:
        texts = pl.Series(column.name, map(_text_or_none, column), dtype=pl.String)
    return texts, texts.is_null() & column.is_not_null()


def _text_or_none(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
