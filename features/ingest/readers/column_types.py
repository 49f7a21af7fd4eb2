"""The dtype of each kind of column, and the conversion to it from what a log's format contains."""

import re
from dataclasses import dataclass

import polars as pl

from features.schema.schema import (
    UNIX,
    CopiedColumns,
    IgnoredColumns,
    LabelColumns,
    Schema,
    TimeColumns,
    for_polars,
)

DATETIME = pl.Datetime("us")
FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799  # of the years 1 to 9999
MAX_HEX_DIGITS = 8
DTYPES: dict[str, pl.DataType] = {
    "label": pl.UInt8(),
    "integer": pl.Int64(),
    "float": pl.Float64(),
    "hex32": pl.UInt32(),
    "string": pl.String(),
    "time": DATETIME,
}
EXPECTED_VALUES = {
    "label": "0 or 1",
    "integer": "an integer",
    "float": "a finite number",
    "hex32": f"up to {MAX_HEX_DIGITS} hex digits",
    "string": "text",
    "copied": "a text, a number or a time",
}


@dataclass(frozen=True)
class Column:
    """A column of the log that is read.

    Attributes:
        name: Its name in the schema.
        kind: `label`, `integer`, `float`, `hex32`, `string` or `time`; or `copied`, of any dtype.
        pattern: The pattern of a time, as of strftime, or `unix`; empty for the other kinds.
        is_required: Whether a row without a value is bad.
    """

    name: str
    kind: str
    pattern: str = ""
    is_required: bool = False

    @property
    def dtype(self) -> pl.DataType:
        """The dtype of the column in a shard."""
        return DTYPES[self.kind]

    @property
    def expected(self) -> str:
        """The column's allowed values, in words for an error message."""
        if self.kind != "time":
            return EXPECTED_VALUES[self.kind]
        if self.pattern == UNIX:
            return "whole seconds since 1970"
        return f"a time like {self.pattern}"

    def conversion_from(self, dtype: pl.DataType) -> pl.Expr | None:
        """Return the expression that converts the column of this name to its dtype in a shard.

        A value that cannot be converted becomes null.

        Args:
            dtype: The dtype that the column has in the log.

        Returns:
            The expression, or None if a column of this dtype cannot contain such values.
        """
        value = pl.col(self.name)
        is_text = dtype == pl.String
        is_integer = dtype.is_integer()
        is_number = is_integer or dtype.is_float()
        match self.kind:
            case "label" if is_text:
                return value.replace_strict({"0": 0, "1": 1}, default=None, return_dtype=pl.UInt8)
            case "label" if is_integer or dtype == pl.Boolean:
                is_label = value.cast(pl.Int64, strict=False).is_between(0, 1)
                return pl.when(is_label).then(value).cast(pl.UInt8)
            case "integer" if is_text or is_integer:
                return value.cast(pl.Int64, strict=False)
            case "integer" if is_number:  # pandas stores integers with gaps as floats
                integer = value.cast(pl.Int64, strict=False)
                return pl.when(value == integer).then(integer)
            case "float" if is_text or is_number or dtype.is_decimal():
                number = value.cast(pl.Float64, strict=False)
                return pl.when(number.is_finite()).then(number)
            case "hex32" if is_text:
                # to_integer also accepts more digits, and a plus sign.
                is_hex = (value.str.len_bytes() <= MAX_HEX_DIGITS) & ~value.str.starts_with("+")
                digits = pl.when(is_hex).then(value)
                return digits.str.to_integer(base=16, dtype=pl.UInt32, strict=False)
            case "hex32" if is_integer:
                return value.cast(pl.UInt32, strict=False)
            case "string" if is_text or is_integer:
                return value.cast(pl.String)
            case "copied" if is_text or is_number or dtype.is_temporal() or dtype.is_decimal():
                return value
            case "time" if is_text or is_integer:
                return self._from_unix() if self.pattern == UNIX else self._from_pattern()
            case "time" if isinstance(dtype, pl.Datetime):
                return _without_time_zone(value, dtype.time_zone).cast(DATETIME)
            case "time" if dtype == pl.Date:
                return value.cast(DATETIME)
        return None

    def _from_unix(self) -> pl.Expr:
        seconds = pl.col(self.name).cast(pl.Int64, strict=False)
        is_in_range = seconds.is_between(FIRST_SECOND, LAST_SECOND)
        return pl.from_epoch(pl.when(is_in_range).then(seconds), time_unit="s").cast(DATETIME)

    def _from_pattern(self) -> pl.Expr:
        text, pattern = for_polars(pl.col(self.name).cast(pl.String), self.pattern)
        time = text.str.strptime(DATETIME, pattern, strict=False)
        has_time_zone = re.search("%[:#]?z", pattern)
        return _without_time_zone(time, "UTC" if has_time_zone else None)


def columns_to_read(schema: Schema, *, labelled: bool) -> list[Column]:
    """Return the columns of a log that are not ignored, in file order.

    Args:
        schema: The schema of the log.
        labelled: Whether the label is one of them.
    """
    columns = []
    for group in schema.columns:
        if isinstance(group, IgnoredColumns):
            if isinstance(group, CopiedColumns):
                columns += [Column(name, "copied") for name in group.names]
            continue
        for name in group.names:
            if isinstance(group, LabelColumns):
                if labelled:
                    columns.append(Column(name, "label", is_required=True))
            elif isinstance(group, TimeColumns):
                gives_day = schema.days is not None and name == schema.days.column
                is_required = labelled and gives_day
                columns.append(Column(name, "time", group.parse, is_required=is_required))
            else:
                columns.append(Column(name, group.parse))
    return columns


def _without_time_zone(time: pl.Expr, time_zone: str | None) -> pl.Expr:
    """Convert a time to UTC if it has a time zone, and drop the time zone."""
    if time_zone is None:
        return time
    return time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
