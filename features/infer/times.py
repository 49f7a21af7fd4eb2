"""The guess whether a column has points in time, and how they are written."""

import re
from datetime import datetime

import polars as pl

from features.infer.names import says_time
from features.infer.sampled_column import SampledColumn
from features.schema.time_parses import ISO8601, UNIX_UNITS

# Numbers and patterns of digits alone are times only between these.
FIRST, LAST = datetime(2000, 1, 1), datetime(2040, 1, 1)
PATTERNS = (
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%d/%b/%Y:%H:%M:%S %z",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%m/%d/%Y %I:%M:%S %p",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y",
    "%d/%m/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%d/%m/%Y",
    "%a, %d %b %Y %H:%M:%S %z",
    "%a %b %d %H:%M:%S %Y",
)
# Which of two orders it is cannot be seen while no day is above 12.
SWAPPED = {"%m/%d/%Y": "%d/%m/%Y"}
# Patterns of digits alone, by their number of digits; the name has to speak of time as well.
DIGITS = {14: "%Y%m%d%H%M%S", 12: "%Y%m%d%H%M", 10: "%Y%m%d%H", 8: "%Y%m%d"}
SHORT_DIGITS = {10: "%y%m%d%H%M", 8: "%y%m%d%H", 6: "%y%m%d"}
# A number since 1970, or a pattern of digits alone. pandas writes whole numbers as 5.0.
NUMBER_OF_UNITS = r"^[0-9]+(\.[0-9]+)?$"
TIME_LIKE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T :].*)?|\d{1,2}/[A-Z][a-z]{2}/\d{4}:.*")


def looks_like_time(text: str) -> bool:
    """Return whether a text looks like a date or a time, whatever its pattern."""
    return TIME_LIKE.fullmatch(text) is not None


def guess_time(column: SampledColumn) -> tuple[str, str | None] | None:
    """Guess how the times of a column are written.

    Args:
        column: The column, with a value at least.

    Returns:
        The parse of the schema, and what is unsure about it, or None. None if it has no times.
    """
    if column.is_temporal or _fits(column, ISO8601):
        return ISO8601, None
    texts = column.present.head(100).cast(pl.String, strict=False)
    if column.is_text:
        if not texts.str.contains(r"[0-9]").all():
            return None
        if not texts.str.contains(NUMBER_OF_UNITS).any():
            return _guess_pattern(column)
    if not says_time(column.name):
        return None
    return _guess_number(column)


def unit_by_size(column: SampledColumn) -> str | None:
    """Return the unit since 1970 in which all numbers of a column are times of our days."""
    for parse in UNIX_UNITS:
        if _fits(column, parse) and _is_of_our_days(column, parse):
            return parse
    return None


def times_of(column: SampledColumn, parse: str) -> pl.Series:
    """Return the points in time of a column, in UTC."""
    return column.convert("time", parse)


def _guess_pattern(column: SampledColumn) -> tuple[str, str | None] | None:
    for pattern in PATTERNS:
        if not _fits(column, pattern):
            continue
        date = pattern.partition(" ")[0]
        if date in SWAPPED:
            other = pattern.replace(date, SWAPPED[date])
            if _fits(column, other):
                return pattern, f"days and months cannot be told apart; else parse: {other!r}"
        return pattern, None
    return None


def _guess_number(column: SampledColumn) -> tuple[str, str | None] | None:
    unit = unit_by_size(column)
    if unit is not None:
        return unit, None
    lengths = column.present.cast(pl.String, strict=False).str.len_chars().unique().to_list()
    if len(lengths) != 1:
        return None
    for patterns in (DIGITS, SHORT_DIGITS):
        pattern = patterns.get(lengths[0])
        if pattern and _fits(column, pattern) and _is_of_our_days(column, pattern):
            return pattern, None
    return None


def _fits(column: SampledColumn, parse: str) -> bool:
    return column.fits("time", parse)


def _is_of_our_days(column: SampledColumn, parse: str) -> bool:
    return bool(times_of(column, parse).drop_nulls().is_between(FIRST, LAST).all())
