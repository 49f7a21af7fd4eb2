"""What a raw column holds: one type per kind, whatever the log's format; null where a value cannot be read."""

import re
from dataclasses import dataclass

import polars as pl

from features.schema.schema import (
    UNIX,
    IgnoredColumns,
    LabelColumns,
    Schema,
    TimeColumns,
    with_minutes,
)

DATETIME = pl.Datetime("us")
FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799  # of the years 1 to 9999
DTYPES: dict[str, pl.DataType] = {
    "label": pl.UInt8(),
    "integer": pl.Int64(),
    "float": pl.Float64(),
    "hex32": pl.UInt32(),
    "string": pl.String(),
    "time": DATETIME,
}
WANTED = {
    "label": "0 or 1",
    "integer": "an integer",
    "float": "a finite number",
    "hex32": "up to 8 hex digits",
    "string": "text",
}


@dataclass(frozen=True)
class Column:
    """A column that is kept. kind: label, integer, float, hex32, string or time; pattern: of a time, strftime's or `unix`."""

    name: str
    kind: str
    pattern: str = ""

    @property
    def dtype(self) -> pl.DataType:
        return DTYPES[self.kind]

    @property
    def wanted(self) -> str:
        """What its values are, in words."""
        return WANTED.get(
            self.kind,
            "whole seconds since 1970" if self.pattern == UNIX else f"a time like {self.pattern}",
        )

    def read(self, found: pl.DataType) -> pl.Expr | None:
        """The column as its dtype, from a column of the same name as it was found; None if such a column holds no such values."""
        value = pl.col(self.name)
        is_text, is_number = found == pl.String, found.is_integer() or found.is_float()
        match self.kind:
            case "label" if is_text:
                return value.replace_strict({"0": 0, "1": 1}, default=None, return_dtype=pl.UInt8)
            case "label" if found.is_integer() or found == pl.Boolean:
                return (
                    pl.when(value.cast(pl.Int64, strict=False).is_between(0, 1))
                    .then(value)
                    .cast(pl.UInt8)
                )
            case "integer" if is_text or found.is_integer():
                return value.cast(pl.Int64, strict=False)
            case "integer" if is_number:  # what pandas makes of integers with gaps
                whole = value.cast(pl.Int64, strict=False)
                return pl.when(value == whole).then(whole)
            case "float" if is_text or is_number or found.is_decimal():
                number = value.cast(pl.Float64, strict=False)
                return pl.when(number.is_finite()).then(number)
            case "hex32" if is_text:  # to_integer takes more digits, and a plus
                is_hex = (value.str.len_bytes() <= 8) & ~value.str.starts_with("+")
                return (
                    pl.when(is_hex)
                    .then(value)
                    .str.to_integer(base=16, dtype=pl.UInt32, strict=False)
                )
            case "hex32" if found.is_integer():
                return value.cast(pl.UInt32, strict=False)
            case "string" if is_text or found.is_integer():
                return value.cast(pl.String)
            case "time" if is_text or found.is_integer():
                return self._unix() if self.pattern == UNIX else self._strptime()
            case "time" if isinstance(found, pl.Datetime):
                return _naive(value, found.time_zone).cast(DATETIME)
            case "time" if found == pl.Date:
                return value.cast(DATETIME)
        return None

    def _unix(self) -> pl.Expr:
        seconds = pl.col(self.name).cast(pl.Int64, strict=False)
        known = pl.when(seconds.is_between(FIRST_SECOND, LAST_SECOND)).then(seconds)
        return pl.from_epoch(known, time_unit="s").cast(DATETIME)

    def _strptime(self) -> pl.Expr:
        text, pattern = with_minutes(pl.col(self.name).cast(pl.String), self.pattern)
        time = text.str.strptime(DATETIME, pattern, strict=False)
        return _naive(time, "UTC" if re.search("%[:#]?z", pattern) else None)


def raw_columns(schema: Schema, *, labelled: bool) -> list[Column]:
    """The columns of a log that are kept, in file order."""
    columns = []
    for group in schema.columns:
        if isinstance(group, IgnoredColumns) or (isinstance(group, LabelColumns) and not labelled):
            continue
        for name in group.names:
            if isinstance(group, LabelColumns):
                columns.append(Column(name, "label"))
            elif isinstance(group, TimeColumns):
                columns.append(Column(name, "time", group.parse))
            else:
                columns.append(Column(name, group.parse))
    return columns


def _naive(time: pl.Expr, time_zone: str | None) -> pl.Expr:
    """Without its time zone; in UTC, if it had one."""
    return time.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if time_zone else time
