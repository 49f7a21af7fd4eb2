"""The dtype of each kind of column, and the conversion to it from what a log's format contains."""

import re
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.list_values import lengths_of, lists_of, values_of
from features.schema.schema import (
    UNIX,
    CategoricalColumns,
    CopiedColumns,
    DenseColumns,
    IgnoredColumns,
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
    "weights": pl.Float32(),
    "sample_weight": pl.Float32(),
}
EXPECTED_VALUES = {
    "label": "0 or 1",
    "integer": "an integer",
    "float": "a finite number",
    "hex32": f"up to {MAX_HEX_DIGITS} hex digits",
    "string": "text",
    "copied": "a text, a number or a time",
    "weights": "a finite number",
    "sample_weight": "a finite number of at least 0",
}


@dataclass(frozen=True)
class Column:
    """A column of the log that is read.

    Attributes:
        name: Its name in the schema.
        kind: `label`, `integer`, `float`, `hex32`, `string`, `time`, `weights` or `sample_weight`;
            or `copied`, of any dtype. Of a column of lists, it is the kind of their values.
        pattern: The pattern of a time, as of strftime, or `unix`; empty for the other kinds.
        is_required: Whether a row without a value is bad.
        is_list: Whether each row has a list of values.
        separator: The character between two values of a list in a text log; else None.
        weights_of: The column of lists that these are the weights of; empty for other columns.
    """

    name: str
    kind: str
    pattern: str = ""
    is_required: bool = False
    is_list: bool = False
    separator: str | None = None
    weights_of: str = ""

    @property
    def dtype(self) -> pl.DataType:
        """The dtype of the column in a shard."""
        return pl.List(DTYPES[self.kind]) if self.is_list else DTYPES[self.kind]

    @property
    def value(self) -> "Column":
        """The column that the values of the lists would make."""
        return Column(self.name, self.kind)

    @property
    def expected(self) -> str:
        """The column's allowed values, in words for an error message."""
        if self.is_list:
            return f"a list of values each of which is {self.value.expected}"
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
        if self.is_list:
            return self._conversion_of_lists(dtype)
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
            case "weights" | "sample_weight" if is_text or is_number or dtype.is_decimal():
                number = value.cast(pl.Float32, strict=False)
                is_allowed = number.is_finite()
                if self.kind == "sample_weight":
                    is_allowed &= number >= 0
                return pl.when(is_allowed).then(number)
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

    def bad_values(self, values: pl.Series) -> tuple[pl.Series, pl.Series]:
        """Convert the values of lists.

        Returns:
            The converted values, and whether a value is bad. A null is a value that is missing,
            but no weight.
        """
        conversion = self.value.conversion_from(values.dtype)
        if conversion is None:  # a column whose lists are all empty may have the dtype Null
            conversion = pl.col(self.name).cast(DTYPES[self.kind])
        converted = values.to_frame(self.name).select(conversion).to_series()
        is_bad = converted.is_null()
        return converted, is_bad if self.kind == "weights" else is_bad & values.is_not_null()

    def _conversion_of_lists(self, dtype: pl.DataType) -> pl.Expr | None:
        """Return the expression that makes lists with a bad value null."""
        if not isinstance(dtype, pl.List):
            return None
        inner: pl.DataType = dtype.inner  # type: ignore[assignment]
        if inner != pl.Null and self.value.conversion_from(inner) is None:
            return None

        def converted(lists: pl.Series) -> pl.Series:
            values, is_bad = self.bad_values(values_of(lists))
            is_null, lengths = lists.is_null().to_numpy(), lengths_of(lists)
            if is_bad.any():
                row_of_value = np.repeat(np.arange(len(lists)), lengths)
                is_null = is_null.copy()
                is_null[row_of_value[is_bad.to_numpy()]] = True
            return lists_of(values, lengths, is_null if is_null.any() else None)

        return pl.col(self.name).map_batches(converted, self.dtype)

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
        labelled: Whether the label and the sample weights are two of them.
    """
    columns = []
    lists = {feature.list.weights: feature for feature in schema.list_features if feature.list}
    for group in schema.columns:
        if isinstance(group, IgnoredColumns):
            if isinstance(group, CopiedColumns):
                columns += [Column(name, "copied") for name in group.names]
            continue
        for name in group.names:
            if isinstance(group, CategoricalColumns) and group.list:
                columns.append(
                    Column(name, group.parse, is_list=True, separator=group.list.separator)
                )
            elif isinstance(group, DenseColumns | CategoricalColumns):
                columns.append(Column(name, group.parse))
            elif isinstance(group, TimeColumns):
                gives_day = schema.days is not None and name == schema.days.column
                is_required = labelled and gives_day
                columns.append(Column(name, "time", group.parse, is_required=is_required))
            elif group.kind == "weights":
                of = lists[name]
                assert of.list is not None
                columns.append(
                    Column(
                        name,
                        "weights",
                        is_list=True,
                        separator=of.list.separator,
                        weights_of=of.name,
                    )
                )
            elif labelled:
                columns.append(Column(name, group.kind, is_required=True))
    return columns


def _without_time_zone(time: pl.Expr, time_zone: str | None) -> pl.Expr:
    """Convert a time to UTC if it has a time zone, and drop the time zone."""
    if time_zone is None:
        return time
    return time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
