"""Columns of Arrow as Polars columns of plain values: numbers, booleans, texts and times."""

from typing import Any

import polars as pl
import pyarrow as pa
from polars.exceptions import ComputeError

from features.ingest.readers.columnar_files import is_list, is_text

# The bytes of a UUID in hex, and where its text has hyphens.
UUID_HEX, UUID_TEXT = "^(.{8})(.{4})(.{4})(.{4})(.{12})$", "$1-$2-$3-$4-$5"


def plain_columns(batch: pa.RecordBatch) -> tuple[pl.DataFrame, pl.Series | None]:
    """Convert a batch to Polars.

    Dictionaries become their values, UUIDs their text, and binary values text, also in lists.

    Returns:
        The columns.
        The reason why a row has a binary value that is no text; null where there is none. None if
        there is none in the batch. Such a value is null in the columns.
    """
    columns, reasons = [], []
    for column in stored_columns(batch):
        name = column.name
        if column.dtype in (pl.Binary, pl.List(pl.Binary)):
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
    if not is_known(arrow_type):
        return None
    dtype = _plain(pa.nulls(0, arrow_type)).dtype
    return _dtype_of_texts(dtype) if dtype in (pl.Binary, pl.List(pl.Binary)) else dtype


def is_known(arrow_type: pa.DataType) -> bool:
    """Return whether Polars knows a type. For some others it ends with what is no Exception."""
    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if isinstance(arrow_type, pa.BaseExtensionType):
        arrow_type = arrow_type.storage_type
    if is_list(arrow_type):
        return is_known(arrow_type.value_type)
    if pa.types.is_interval(arrow_type) or pa.types.is_decimal256(arrow_type):
        return False
    is_number = pa.types.is_primitive(arrow_type) or pa.types.is_decimal(arrow_type)
    is_bytes = is_text(arrow_type) or pa.types.is_fixed_size_binary(arrow_type)
    return is_number or is_bytes or pa.types.is_null(arrow_type)


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
    dtype = _plain_dtype(column.dtype)
    column = column.cast(dtype) if dtype != column.dtype else column
    if is_list(array.type) and isinstance(array.type.value_type, pa.UuidType):
        element = pl.element().bin.encode("hex")
        return column.list.eval(element.str.replace(UUID_HEX, UUID_TEXT))
    return column


def _plain_dtype(dtype: pl.DataType) -> pl.DataType:
    """Return the dtype with texts instead of categories, and with lists that have any length."""
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_plain_dtype(dtype.inner))  # type: ignore[arg-type]
    return dtype


def _dtype_of_texts(dtype: pl.DataType) -> pl.DataType:
    return pl.List(pl.String) if isinstance(dtype, pl.List) else pl.String()


def _decoded(column: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Decode binary values as UTF-8, and return which of them are no UTF-8; they become null.

    Of lists, these are the lists with such a value.
    """
    dtype = _dtype_of_texts(column.dtype)
    try:
        return column.cast(dtype), pl.repeat(False, len(column), eager=True)
    except ComputeError:
        texts = pl.Series(column.name, map(_text_or_none, column.to_list()), dtype=dtype)
    return texts, texts.is_null() & column.is_not_null()


def _text_or_none(value: Any) -> Any:
    """Return a binary value, or a list of them, as text; None if it is no UTF-8."""
    try:
        if isinstance(value, list):
            return [None if one is None else one.decode() for one in value]
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
