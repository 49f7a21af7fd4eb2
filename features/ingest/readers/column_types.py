"""The dtype of each kind of column, and the conversion to it from what a log's format contains."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from common.numbers import MAX_EXACT
from features.ingest.readers.times import (
    DATETIME,
    from_datetime,
    from_iso8601,
    from_pattern,
    from_unix,
    from_unix_fraction,
)
from features.list_values import lengths_of, lists_of, values_of
from features.schema.listed_values import is_listed
from features.schema.schema import (
    CategoricalColumns,
    CopiedColumns,
    DenseColumns,
    IgnoredColumns,
    LabelColumns,
    Schema,
    TimeColumns,
)
from features.schema.time_parses import ISO8601, UNIT_NAMES, UNIX_UNITS
from features.schema.transforms.transform import MAX_FLOAT32

MAX_HEX_DIGITS = 8
# A sample weight is 0 or between these. So the sum of a batch, and its inverse, fit into a float32.
MIN_WEIGHT, MAX_WEIGHT = 1e-30, 1e30
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
    "integer": "an integer of 64 bits",
    "float": f"a finite number up to {MAX_FLOAT32:.1e}",
    "hex32": f"up to {MAX_HEX_DIGITS} hex digits",
    "string": "text",
    "copied": "a text, a number or a time",
    "weights": "a finite number",
    "sample_weight": f"0 or a number from {MIN_WEIGHT:.0e} to {MAX_WEIGHT:.0e}",
}
# Each value of the dtype that such a column has in a shard is a good one.
ALWAYS_GOOD_KINDS = ("integer", "hex32", "string")
BOOLEANS = {
    text: number
    for number, word in ((0, "false"), (1, "true"))
    for text in (word, word.capitalize(), word.upper())
}
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1} | BOOLEANS


@dataclass(frozen=True)
class Column:
    """A column of the log that is read.

    Attributes:
        name: Its name in the schema.
        kind: `label`, `integer`, `float`, `hex32`, `string`, `time`, `weights` or `sample_weight`;
            or `copied`, of any dtype. Of a column of lists, it is the kind of their values.
        pattern: How a time is written, as `parse` of the schema; empty for the other kinds.
        zone: The time zone of times without an offset; None if they are in UTC.
        positive: The values of a label that become 1; empty if they are not listed.
        negative: The values of a label that become 0; empty if they are not listed.
        is_required: Whether a row without a value is bad.
        is_list: Whether each row has a list of values.
        separator: The character between two values of a list in a text log; else None.
        weights_of: The column of lists that these are the weights of; empty for other columns.
    """

    name: str
    kind: str
    pattern: str = ""
    zone: str | None = None
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
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
    def labels(self) -> list[str]:
        """The values that the schema lists for a label; empty if it lists none."""
        return [*self.positive, *self.negative]

    @property
    def is_unix(self) -> bool:
        """Whether the column is a time that is a number since 1970."""
        return self.pattern in UNIX_UNITS

    @property
    def expected(self) -> str:
        """The column's allowed values, in words for an error message."""
        if self.is_list:
            return f"a list of values each of which is {self.value.expected}"
        if self.positive:
            return f"one of {', '.join(map(repr, self.labels))} (positive, negative)"
        if self.kind != "time":
            return EXPECTED_VALUES[self.kind]
        if self.is_unix:
            others = ", ".join(parse for parse in UNIX_UNITS if parse != self.pattern)
            return f"{UNIT_NAMES[self.pattern]} since 1970 (other units: {others})"
        where = f" in {self.zone}" if self.zone else ""
        like = "2026-03-01T10:15:00Z" if self.pattern == ISO8601 else self.pattern
        return f"a time like {like}{where}"

    def is_converted(self, dtype: pl.DataType) -> bool:
        """Return whether a column of this dtype needs no conversion, and has no bad values."""
        return self.kind in ALWAYS_GOOD_KINDS and dtype == self.dtype

    def has_only_labels(self, values: pl.Series) -> bool:
        """Return whether the column is a label whose values are 0 and 1 already.

        The reader of text makes such values, and to look at them is faster than to convert them.
        """
        if self.kind != "label" or self.labels or values.dtype != self.dtype:
            return False
        return not values.has_nulls() and int(values.to_numpy().max(initial=0)) <= 1

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
        converted = self._converted(pl.col(self.name), dtype)
        return None if converted is None else converted.alias(self.name)

    def _converted(self, value: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
        is_text = dtype == pl.String
        is_integer = dtype.is_integer()
        is_number = is_integer or dtype.is_float() or dtype.is_decimal()
        is_boolean = dtype == pl.Boolean
        if dtype == pl.Null:  # a log without one value of the column
            return value.cast(pl.String if self.kind == "copied" else self.dtype)
        match self.kind:
            case "label" if self.positive and (is_text or is_number or is_boolean):
                is_positive = is_listed(value, dtype, [*self.positive])
                is_negative = is_listed(value, dtype, [*self.negative])
                return pl.when(is_positive).then(1).when(is_negative).then(0).cast(pl.UInt8)
            case "label" if is_text:
                return value.replace_strict(LABELS, default=None, return_dtype=pl.UInt8)
            case "label" if is_integer or is_boolean:
                is_label = value.cast(pl.Int64, strict=False).is_between(0, 1)
                return pl.when(is_label).then(value).cast(pl.UInt8)
            case "label" if is_number:
                return pl.when(value == 1).then(1).when(value == 0).then(0).cast(pl.UInt8)
            case "integer":
                return _integers(value, dtype)
            case "float" if is_text or is_number:
                number = value.cast(pl.Float64, strict=False)
                return pl.when(number.abs() <= MAX_FLOAT32).then(number)  # also false for NaN
            case "weights" | "sample_weight" if is_text or is_number:
                number = value.cast(pl.Float32, strict=False)
                if self.kind == "sample_weight":
                    is_allowed = (number == 0) | number.is_between(MIN_WEIGHT, MAX_WEIGHT)
                else:
                    is_allowed = number.is_finite()
                return pl.when(is_allowed).then(number)
            case "hex32" if is_text:
                # to_integer also accepts more digits, and a plus sign.
                is_hex = (value.str.len_bytes() <= MAX_HEX_DIGITS) & ~value.str.starts_with("+")
                digits = pl.when(is_hex).then(value)
                return digits.str.to_integer(base=16, dtype=pl.UInt32, strict=False)
            case "hex32" if is_integer or _is_whole_decimal(dtype):
                return value.cast(pl.UInt32, strict=False)
            case "string" if is_text or is_integer or is_boolean or dtype.is_decimal():
                return value.cast(pl.String)
            case "copied" if is_text or is_number or is_boolean or dtype.is_temporal():
                return value
            case "time" if isinstance(dtype, pl.Datetime):
                return from_datetime(value, dtype, self.zone)
            case "time" if dtype == pl.Date:
                return from_datetime(value.cast(DATETIME), DATETIME, self.zone)
            case "time" if self.is_unix:
                integer = _integers(value, dtype)
                if integer is None:
                    return None
                time = from_unix(integer, self.pattern)
                if is_integer or is_boolean:
                    return time
                number = value.cast(pl.Float64, strict=False)
                return time.fill_null(from_unix_fraction(number, self.pattern))
            case "time" if self.pattern == ISO8601 and is_text:
                return from_iso8601(value, self.zone)
            case "time" if self.pattern != ISO8601 and (is_text or is_integer):
                return from_pattern(value.cast(pl.String), self.pattern, self.zone)
        return None

    def bad_values(self, values: pl.Series) -> tuple[pl.Series, pl.Series]:
        """Convert the values of lists.

        Returns:
            The converted values, and whether a value is bad. A null is a value that is missing,
            but no weight.
        """
        conversion = self.value.conversion_from(values.dtype)
        assert conversion is not None  # `_conversion_of_lists` has found one
        converted = values.to_frame(self.name).select(conversion).to_series()
        is_bad = converted.is_null()
        return converted, is_bad if self.kind == "weights" else is_bad & values.is_not_null()

    def _conversion_of_lists(self, dtype: pl.DataType) -> pl.Expr | None:
        """Return the expression that makes lists with a bad value null."""
        if dtype == pl.Null:  # a log without one list of the column
            return pl.col(self.name).cast(self.dtype)
        if not isinstance(dtype, pl.List):
            return None
        inner: pl.DataType = dtype.inner  # type: ignore[assignment]
        if self.value.conversion_from(inner) is None:
            return None
        if self.is_converted(dtype):
            return pl.col(self.name)

        def converted(lists: pl.Series) -> pl.Series:
            values, is_bad = self.bad_values(values_of(lists))
            is_null, lengths = lists.is_null().to_numpy(), lengths_of(lists)
            if is_bad.any():
                row_of_value = np.repeat(np.arange(len(lists)), lengths)
                is_null = is_null.copy()
                is_null[row_of_value[is_bad.to_numpy()]] = True
            return lists_of(values, lengths, is_null if is_null.any() else None)

        return pl.col(self.name).map_batches(converted, self.dtype)


def _integers(value: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    """Convert values of a dtype to int64; None if the dtype has no integers."""
    if dtype == pl.String:
        return value.map_batches(_integers_of_texts, pl.Int64)
    if dtype.is_integer() or dtype == pl.Boolean:
        return value.cast(pl.Int64, strict=False)
    if dtype.is_float() or dtype.is_decimal():  # pandas stores integers with gaps as floats
        integer = value.cast(pl.Int64, strict=False)
        return pl.when(value == integer).then(integer)
    return None


def _integers_of_texts(texts: pl.Series) -> pl.Series:
    """Read digits, numbers without a fraction (`5.0`, `1e3`), and true and false."""
    integers = texts.cast(pl.Int64, strict=False)
    if integers.null_count() == texts.null_count():
        return integers
    numbers = texts.cast(pl.Float64, strict=False)
    booleans = texts.replace_strict(BOOLEANS, default=None, return_dtype=pl.Int64)
    is_whole = (numbers == numbers.floor()) & (numbers.abs() < MAX_EXACT)
    # Above MAX_EXACT a float may be another number than the digits say.
    wholes = numbers.zip_with(is_whole.fill_null(False), pl.Series([None], dtype=pl.Float64))
    return pl.select(pl.coalesce(integers, wholes.cast(pl.Int64), booleans)).to_series()


def _is_whole_decimal(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.Decimal) and dtype.scale == 0


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
                columns.append(
                    Column(name, "time", group.parse, group.zone, is_required=is_required)
                )
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
            elif labelled and isinstance(group, LabelColumns):
                columns.append(
                    Column(
                        name,
                        "label",
                        positive=tuple(group.positive or ()),
                        negative=tuple(group.negative or ()),
                        is_required=True,
                    )
                )
            elif labelled:
                columns.append(Column(name, group.kind, is_required=True))
    return columns
