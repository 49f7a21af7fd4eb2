"""The texts of a sample that mean a missing value."""

from collections.abc import Sequence

import polars as pl

from features.infer.sampled_column import SampledColumn
from features.infer.times import guess_time

# Texts that mean nothing else, whatever their column has.
UNMISTAKABLE = ("", "\\N", "NULL", "null", "NaN", "nan", "<NA>", "N/A", "n/a", "#N/A")
# Texts that may be values. They count where the other values of their column are numbers or times.
WITH_NUMBERS = (
    "NA",
    "na",
    "None",
    "none",
    "Null",
    "NAN",
    "Nan",
    "NaT",
    "-",
    "--",
    "?",
    ".",
    "inf",
    "-inf",
    "Inf",
    "-Inf",
    "Infinity",
    "-Infinity",
)


def find_null_tokens(columns: Sequence[SampledColumn], *, is_text: bool) -> list[str]:
    """Return the null tokens of a log: those that occur, and in text the empty field.

    Args:
        columns: Its columns.
        is_text: Whether it is a text log. An empty field is then missing even if none is in the
            sample.
    """
    found = [""] if is_text else []
    found += [token for token in UNMISTAKABLE if any(_has(column, token) for column in columns)]
    for column in columns:
        used = [token for token in WITH_NUMBERS if _has(column, token)]
        if used:
            others = column.without_tokens([*found, *used])
            if len(others.present) and (others.fits("float") or guess_time(others)):
                found += used
    return list(dict.fromkeys(found))


def _has(column: SampledColumn, token: str) -> bool:
    """Return whether a column has a value that this token would make missing."""
    dtype = column.values.dtype
    if column.is_nested or not (dtype == pl.String or dtype.is_float()):
        return False
    return column.without_tokens([token]).values.null_count() > column.values.null_count()
