"""The conversion of what a log contains to points in time, in UTC and in microseconds.

A value that is no time becomes null.
"""

import re

import polars as pl

from common.numbers import MAX_EXACT
from features.schema.time_parses import UNIX_UNITS, for_polars

DATETIME = pl.Datetime("us")
FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799  # of the years 1 to 9999
NUM_PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}
# Group 1 is the date, 2 the hour, 3 the minute, 4 the second, 5 its fraction, and 6 the offset from
# UTC. BigQuery and Athena write the offset as the word UTC.
ISO8601_TEXT = (
    r"^(\d{4}-\d{2}-\d{2})"
    r"(?:[Tt ](\d{2})(?::(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?)?"
    r" ?([Zz]|UTC|[+-]\d{2}(?::?\d{2})?)?)?$"
)
TIME_ZONE_IN_PATTERN = re.compile("%[:#]?z")


def from_unix(number: pl.Expr, parse: str) -> pl.Expr:
    """Convert whole numbers (int64) of a unit since 1970; smaller units than 1 us are cut off."""
    num_per_second = UNIX_UNITS[parse]
    first, last = FIRST_SECOND * num_per_second, (LAST_SECOND + 1) * num_per_second - 1
    # Where the unit is 1 ns, an int64 ends in 2262.
    in_range = pl.when(number.is_between(max(first, -(2**63)), min(last, 2**63 - 1))).then(number)
    num_us = 10**6
    if num_per_second > num_us:
        microseconds = in_range // (num_per_second // num_us)
    else:
        microseconds = in_range * (num_us // num_per_second)
    return microseconds.cast(DATETIME)


def from_unix_fraction(number: pl.Expr, parse: str) -> pl.Expr:
    """Convert numbers (float64) of a unit since 1970, such as those of Python's `time.time()`.

    They are rounded to microseconds, which a float64 holds exactly for 285 years. Numbers above
    2**53 units are no times: there a float64 may be another number than the log says.
    """
    num_per_second = UNIX_UNITS[parse]
    limit = min(MAX_EXACT - 1, LAST_SECOND * num_per_second)
    in_range = pl.when(number.is_between(max(FIRST_SECOND * num_per_second, -limit), limit)).then(
        number
    )
    return (in_range * (10**6 / num_per_second)).round().cast(pl.Int64).cast(DATETIME)


def from_pattern(text: pl.Expr, pattern: str, zone: str | None) -> pl.Expr:
    """Convert texts by a pattern of strftime.

    Args:
        text: The times.
        pattern: The pattern.
        zone: The time zone of the texts; None if they are UTC, or the pattern has their offset.
    """
    text, pattern = for_polars(text, pattern)
    time = text.str.strptime(DATETIME, pattern, strict=False)
    return to_utc(time, "UTC" if TIME_ZONE_IN_PATTERN.search(pattern) else None, zone)


def from_iso8601(text: pl.Expr, zone: str | None) -> pl.Expr:
    """Convert texts like 2026-03-01, 2026-03-01T10:15:00.5Z or 2026-03-01 10:15:00+02:00.

    Args:
        text: The times.
        zone: The time zone of the texts without an offset; None if they are UTC.
    """
    parts = text.str.extract_groups(ISO8601_TEXT).struct
    day, hour, minute, second, fraction, offset = (parts.field(str(k)) for k in range(1, 7))
    clock = [part.fill_null("00") for part in (hour, minute, second)]
    whole = pl.concat_str([day, *clock], separator=" ")
    time = whole.str.strptime(DATETIME, "%Y-%m-%d %H %M %S", strict=False)
    microseconds = fraction.fill_null("0").str.pad_end(9, "0").str.slice(0, 6).cast(pl.Int64)
    time += pl.duration(microseconds=microseconds)
    digits = offset.str.replace(":", "", literal=True).str.pad_end(5, "0")
    hours = digits.str.slice(0, 3).cast(pl.Int64, strict=False)
    minutes = digits.str.slice(3).cast(pl.Int64, strict=False)
    is_negative = digits.str.starts_with("-")
    shift = hours * 60 + pl.when(is_negative).then(-minutes).otherwise(minutes)
    has_offset = offset.is_not_null() & ~offset.is_in(["Z", "z", "UTC"])
    is_possible = hours.is_between(-23, 23) & (minutes < 60)
    shifted = pl.when(is_possible).then(time - pl.duration(minutes=shift))
    if zone is None:
        return pl.when(has_offset).then(shifted).otherwise(time)
    local = to_utc(time, None, zone)
    is_utc = offset.is_not_null()
    return pl.when(has_offset).then(shifted).when(is_utc).then(time).otherwise(local)


def from_datetime(time: pl.Expr, dtype: pl.Datetime, zone: str | None) -> pl.Expr:
    """Convert timestamps of any unit.

    Args:
        time: The timestamps.
        dtype: Their dtype.
        zone: The time zone of timestamps that have none; None if they are UTC.
    """
    num_per_second = NUM_PER_SECOND[dtype.time_unit]
    first, last = FIRST_SECOND * num_per_second, (LAST_SECOND + 1) * num_per_second - 1
    is_possible = time.to_physical().is_between(max(first, -(2**63)), min(last, 2**63 - 1))
    return to_utc(pl.when(is_possible).then(time), dtype.time_zone, zone).cast(DATETIME)


def to_utc(time: pl.Expr, time_zone: str | None, zone: str | None) -> pl.Expr:
    """Convert times to UTC, without a time zone in their dtype.

    Args:
        time: The times.
        time_zone: The time zone of their dtype; None if there is none.
        zone: The time zone of local times, if their dtype has none; None if they are UTC already.
            A local time that occurs twice, when clocks are set back, is taken as the first of the
            two. One that does not occur, when clocks are set forward, becomes null.
    """
    if time_zone is None and zone is None:
        return time
    if time_zone is None:
        time = time.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    return time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
