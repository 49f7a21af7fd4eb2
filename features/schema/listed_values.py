"""The comparison of a log's values with the values that a schema lists.

These are the null tokens of the format, and the values of the label that are clicks or are none. A
schema lists texts. A text of a log is compared as it is written: the token `-1` is not the text
`-1.0`. A number of JSON or Parquet is compared as a number: the token `-1` is also -1.0, and the
token `NaN`, in small or capital letters, is NaN. A boolean is compared with `true` and `false`.
"""

import re

import polars as pl

MAX_INTEGER_CHARS = 30  # a longer one is no integer of 64 bits
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(
    r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|nan|[+-]?inf(inity)?", re.IGNORECASE
)


def number_of(text: str) -> int | float | None:
    """Return the number that a text is; None if it is none."""
    if INTEGER.fullmatch(text) and len(text) <= MAX_INTEGER_CHARS:
        return int(text)
    return float(text) if NUMBER.fullmatch(text) else None


def numbers_of(texts: list[str]) -> list[int | float]:
    """Return the numbers among some texts."""
    return [number for text in texts if (number := number_of(text)) is not None]


def are_same_number(one: int | float, other: int | float) -> bool:
    """Return whether two numbers are equal; NaN is equal to NaN."""
    return one == other or (one != one and other != other)


def find_number(text: str, listed: list[str]) -> str | None:
    """Return the listed text that is the same number as a number's text; None if there is none."""
    number = number_of(text)
    if number is None:
        return None
    for candidate in listed:
        other = number_of(candidate)
        if other is not None and are_same_number(number, other):
            return candidate
    return None


def is_listed(value: pl.Expr, dtype: pl.DataType, listed: list[str]) -> pl.Expr:
    """Return an expression that is true where a value is one of the listed ones.

    Args:
        value: The values, as an expression. It is null where they are.
        dtype: Their dtype: a text, a boolean or a number. Other values are not listed.
        listed: The texts that the schema lists.
    """
    if dtype == pl.String:
        return value.is_in(pl.Series(listed, dtype=pl.String).implode())
    if dtype == pl.Boolean:
        return value.cast(pl.String).is_in(pl.Series(listed, dtype=pl.String).implode())
    if isinstance(dtype, pl.Decimal):
        dtype = pl.Int128() if dtype.scale == 0 else pl.Float64()
        value = value.cast(dtype)
    numbers = numbers_of(listed)
    if dtype.is_integer():
        integers = [int(one) for one in numbers if abs(one) < 2**64 and one % 1 == 0]
        known = pl.Series(integers, dtype=pl.Int128).cast(dtype, strict=False).drop_nulls()
        return value.is_in(known.implode())
    if dtype.is_float():
        floats = pl.Series(list(map(float, numbers)), dtype=pl.Float64).cast(dtype)
        is_equal = value.is_in(floats.drop_nans().implode())
        return is_equal | value.is_nan() if floats.is_nan().any() else is_equal
    return pl.lit(False)


def has_effect(dtype: pl.DataType, listed: list[str]) -> bool:
    """Return whether a column of this dtype can have a listed value at all."""
    if dtype == pl.String:
        return bool(listed)
    if dtype == pl.Boolean:
        return "true" in listed or "false" in listed
    return dtype.is_numeric() and bool(numbers_of(listed))
