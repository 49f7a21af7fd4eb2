"""The ways in which a schema can say how a column of times is written (`parse` and `zone`)."""

import re
from datetime import datetime
from functools import lru_cache
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

ISO8601 = "iso8601"
# The number of units in a second of each parse that counts the time since 1970.
UNIX_UNITS = {"unix": 1, "unix_ms": 10**3, "unix_us": 10**6, "unix_ns": 10**9}
UNIT_NAMES = {
    "unix": "seconds",
    "unix_ms": "milliseconds",
    "unix_us": "microseconds",
    "unix_ns": "nanoseconds",
}
# The `.%f` of a pattern; `%%` is no directive, and is group 1.
FRACTION = re.compile(r"(%%)|\.%f")
OTHER_FRACTION = re.compile(r"(?<!%)(?:%%)*%f")


def time_parse_fault(parse: str, zone: str | None) -> str | None:
    """Return why times cannot be read in this way; None if they can.

    Args:
        parse: A name of this module, or a pattern as of strftime.
        zone: The time zone of local times; None if the times are UTC or have an offset.
    """
    if parse not in (ISO8601, *UNIX_UNITS):
        fault = _pattern_fault(parse)
        if fault:
            return fault
    return None if zone is None else _zone_fault(parse, zone)


@lru_cache(maxsize=64)  # a schema is validated several times, 4 ms each
def _pattern_fault(pattern: str) -> str | None:
    """Try the pattern on a date: Polars must be able to write and to read it."""
    if "%" not in pattern:
        names = ", ".join([*UNIX_UNITS, ISO8601])
        return f"{pattern!r} is no pattern (such as %Y-%m-%d) and none of {names}"
    if not pattern.isprintable():  # it is part of the reason of a bad row
        return f"{pattern!r} has characters that cannot be printed"
    if OTHER_FRACTION.search(FRACTION.sub(lambda found: found[1] or "", pattern)):
        return (
            f"{pattern!r}: %f is allowed after a point only (.%f); elsewhere write the "
            "number of digits: %3f for milliseconds, %6f for microseconds, %9f for nanoseconds"
        )
    zone = "UTC" if "z" in pattern else None
    example = pl.Series([datetime(2014, 10, 21)]).dt.replace_time_zone(zone)
    try:
        text, adapted = for_polars(example.dt.strftime(pattern), pattern)
        text.str.strptime(pl.Datetime("us"), adapted)
    except PolarsError as error:
        reason, *_ = str(error).split("\n")  # the other lines show Polars' own expression
        return f"{pattern!r} is no pattern of a point in time ({reason})"
    return None


def _zone_fault(parse: str, zone: str) -> str | None:
    if parse in UNIX_UNITS:
        return f"zone {zone!r}: {parse} counts from 1970 in UTC; remove zone"
    if re.search("%[:#]?z", parse):
        return f"zone {zone!r}: {parse} has the offset from UTC already (%z); remove zone"
    if not is_time_zone(zone):
        return f"zone {zone!r} is no time zone; give a name such as Europe/Berlin"
    return None


def is_time_zone(name: str) -> bool:
    """Return whether Polars knows a time zone of this name."""
    try:
        pl.Series([datetime(2014, 10, 21)]).dt.replace_time_zone(name)
    except PolarsError:
        return False
    return True


def for_polars(text: Any, pattern: str) -> tuple[Any, str]:
    """Adapt a time and its pattern to Polars, which differs from strptime in two ways.

    It does not parse hours without minutes. And its `%f` are nanoseconds: it reads .5 as 5 ns. The
    fraction of a second after a point is `%.f`.

    Args:
        text: The time, as a Polars expression or series of text.
        pattern: Its pattern, as of strftime.

    Returns:
        The text and the pattern, both with minutes if the pattern has hours.
    """
    pattern = FRACTION.sub(lambda found: found[1] or "%.f", pattern)
    has_hours = re.search("%[HkIl]", pattern)
    has_minutes = re.search("%[MRTcrX]", pattern)
    if has_hours and not has_minutes:
        return text + " 00", f"{pattern} %M"
    return text, pattern
