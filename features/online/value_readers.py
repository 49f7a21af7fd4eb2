"""Readers of the values of a request: flat lists of texts, or of values of JSON, become arrays.

A reader accepts the plain forms of a value only, of which it is certain that the readers of logs
read them alike. For any other value it raises `UnusualError`, ValueError, TypeError or
OverflowError, and the request is left to the batch path, which also words what is wrong.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.ingest.readers import digits
from features.ingest.readers.column_types import MAX_HEX_DIGITS, Column
from features.ingest.readers.fields import Fields
from features.ingest.readers.times import FIRST_SECOND, LAST_SECOND
from features.schema.time_parses import ISO8601, UNIX_UNITS
from features.schema.transforms.transform import MAX_FLOAT32

FLOAT = re.compile(r"-?[0-9]{1,17}(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,3})?")
ISO8601_TEXT = re.compile(
    r"(?P<Y>[0-9]{4})-(?P<m>[0-9]{2})-(?P<d>[0-9]{2})"
    r"(?:[Tt ](?P<H>[0-9]{2}):(?P<M>[0-9]{2})(?::(?P<S>[0-9]{2})(?:[.,][0-9]{1,9})?)?"
    r"(?:[Zz]|UTC)?)?"
)
DIGITS_OF_DIRECTIVE = {"Y": 4, "y": 2, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2}
FIRST_YEAR_OF_1900 = 70  # Polars reads %y as 1970 to 2069, and strptime as 1969 to 2068
EPOCH = datetime(1970, 1, 1)
HEX_LENGTHS = frozenset(range(1, MAX_HEX_DIGITS + 1))
MIN_INT64, MAX_UINT64 = -(2**63), 2**64 - 1


class UnusualError(Exception):
    """A request is left to the batch path: it is wrong, or has a value of an unusual form."""


class ValueReader(ABC):
    """The reader of the columns of one kind. No value that it gets is missing.

    Attributes:
        filler: What is given in the place of a missing value of JSON.
        filler_text: The same where all values are texts.
    """

    filler: Any = 0
    filler_text: str = "0"

    @abstractmethod
    def of_texts(self, texts: Sequence[str]) -> Any:
        """Return the values of texts, as an array or as a list."""

    @abstractmethod
    def of_json(self, values: Sequence[Any]) -> Any:
        """Return the values of what JSON contains, as `of_texts`."""

    def of_fields(self, fields: Fields, columns: slice) -> digits.Numbers | None:
        """Return the values of neighbouring columns of many lines.

        Returns:
            The values, as the reader of logs reads them from the bytes; None if their texts are
            needed.
        """
        return None


class IntegerReader(ValueReader):
    """Decimal digits, with or without a minus sign, as int64."""

    def of_texts(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the values of texts."""
        all_digits = "".join(texts).replace("-", "")
        if not (all_digits.isdecimal() and all_digits.isascii()):
            raise UnusualError
        return np.array(list(map(int, texts)), np.int64)

    def of_json(self, values: Sequence[Any]) -> NDArray[np.int64]:
        """Return the values of integers, or of their texts."""
        kinds = set(map(type, values))
        if kinds == {int}:
            return np.array(values, np.int64)
        if not kinds <= {int, str}:
            raise UnusualError
        return self.of_texts(list(map(str, values)))

    def of_fields(self, fields: Fields, columns: slice) -> digits.Numbers | None:
        """Return the values of neighbouring columns of many lines."""
        return digits.parse_integers(fields, columns)


class Hex32Reader(ValueReader):
    """Up to eight hex digits, as int64."""

    filler = filler_text = "0" * MAX_HEX_DIGITS

    def of_texts(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the values of texts."""
        lengths = set(map(len, texts))
        if not lengths <= HEX_LENGTHS:
            raise UnusualError
        if lengths != {MAX_HEX_DIGITS}:
            texts = [text.rjust(MAX_HEX_DIGITS, "0") for text in texts]
        words = bytes.fromhex("".join(texts))
        if len(words) != 4 * len(texts):  # it skips white space
            raise UnusualError
        return np.frombuffer(words, ">u4").astype(np.int64)

    def of_json(self, values: Sequence[Any]) -> NDArray[np.int64]:
        """Return the values of texts; how a number was written would be a guess."""
        return self.of_texts(values)

    def of_fields(self, fields: Fields, columns: slice) -> digits.Numbers | None:
        """Return the values of neighbouring columns of many lines."""
        return digits.parse_hex32(fields, columns)


class FloatReader(ValueReader):
    """Numbers, as float64."""

    def of_texts(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the values of texts."""
        if not all(map(FLOAT.fullmatch, texts)):
            raise UnusualError
        return _checked(np.array(list(map(float, texts))))

    def of_json(self, values: Sequence[Any]) -> NDArray[np.float64]:
        """Return the values of numbers, or of their texts."""
        kinds = set(map(type, values))
        if kinds <= {int, float}:
            return _checked(np.array(list(map(float, values))))
        if not kinds <= {int, str}:
            raise UnusualError
        return self.of_texts(list(map(str, values)))


def _checked(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    if not (np.abs(numbers) <= MAX_FLOAT32).all():
        raise UnusualError
    return numbers


class TextReader(ValueReader):
    """Texts, as a list of texts."""

    filler = filler_text = ""

    def of_texts(self, texts: Sequence[str]) -> Sequence[str]:
        """Return the texts themselves."""
        return texts

    def of_json(self, values: Sequence[Any]) -> Sequence[str]:
        """Return texts, and integers as texts."""
        kinds = set(map(type, values))
        if int in kinds:
            integers = [value for value in values if type(value) is int]
            if min(integers) < MIN_INT64 or max(integers) > MAX_UINT64 or not kinds <= {int, str}:
                raise UnusualError
            return list(map(str, values))
        "".join(values).encode()  # raises where a surrogate has no pair
        return values


class UnixReader(ValueReader):
    """Whole numbers of a unit since 1970, as seconds since 1970, int64.

    Args:
        parse: The unit, as in the schema.
    """

    def __init__(self, parse: str) -> None:
        self.num_per_second = UNIX_UNITS[parse]
        self.integers = IntegerReader()

    def of_texts(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the times of texts."""
        return self._seconds(self.integers.of_texts(texts))

    def of_json(self, values: Sequence[Any]) -> NDArray[np.int64]:
        """Return the times of integers, or of their texts."""
        return self._seconds(self.integers.of_json(values))

    def _seconds(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        seconds: NDArray[np.int64] = numbers // self.num_per_second
        if seconds.min() < FIRST_SECOND or seconds.max() > LAST_SECOND:
            raise UnusualError
        return seconds


class TimeTextReader(ValueReader):
    """Times of one form, as seconds since 1970, int64.

    Args:
        form: The form, with the directives of strftime as names of groups.
        example: A text of this form.
        may_be_number: Whether a number of JSON may be such a time, such as 14102100.
    """

    def __init__(self, form: re.Pattern[str], example: str, *, may_be_number: bool) -> None:
        self.form, self.may_be_number = form, may_be_number
        self.filler = self.filler_text = example

    def of_texts(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the times of texts."""
        return np.array(list(map(self._seconds, texts)), np.int64)

    def of_json(self, values: Sequence[Any]) -> NDArray[np.int64]:
        """Return the times of texts, and of integers if the form allows it."""
        if not set(map(type, values)) <= ({int, str} if self.may_be_number else {str}):
            raise UnusualError
        return self.of_texts(list(map(str, values)))

    def _seconds(self, text: str) -> int:
        found = self.form.fullmatch(text)
        if found is None:
            raise UnusualError
        parts = {name: int(text or 0) for name, text in found.groupdict().items()}
        year = parts.get("Y")
        if year is None:
            year = parts["y"] + (1900 if parts["y"] >= FIRST_YEAR_OF_1900 else 2000)
        hour, minute, second = (parts.get(name, 0) for name in "HMS")
        since = datetime(year, parts["m"], parts["d"], hour, minute, second) - EPOCH
        return since.days * 86_400 + since.seconds


def reader_of(column: Column) -> ValueReader | None:
    """Return the reader of a column; None if it is left to the batch path."""
    match column.kind:
        case "integer":
            return IntegerReader()
        case "hex32":
            return Hex32Reader()
        case "float":
            return FloatReader()
        case "string":
            return TextReader()
        case "time" if column.is_unix:
            return UnixReader(column.pattern)
        case "time" if column.zone is None and column.pattern == ISO8601:
            return TimeTextReader(ISO8601_TEXT, "1970-01-01", may_be_number=False)
        case "time" if column.zone is None:
            form = _form_of_pattern(column.pattern)
            example = EPOCH.strftime(column.pattern)
            return TimeTextReader(form, example, may_be_number=True) if form else None
    return None


def _form_of_pattern(pattern: str) -> re.Pattern[str] | None:
    """Return the form of a date, or a date and a clock, in which each part has all of its digits.

    Returns:
        The form; None if the pattern has other directives, or lacks one that a time needs.
    """
    literals = re.split("%(.)", pattern)
    directives = literals[1::2]
    is_date = {"m", "d"} <= {*directives} and ("Y" in directives) != ("y" in directives)
    is_clock = "".join(name for name in "HMS" if name in directives) in ("", "H", "HM", "HMS")
    is_known = len({*directives}) == len(directives) and {*directives} <= {*DIGITS_OF_DIRECTIVE}
    if not (is_date and is_clock and is_known) or not pattern.isascii():
        return None
    parts = [re.escape(literals[0])]
    for name, literal in zip(directives, literals[2::2], strict=True):
        parts.append(f"(?P<{name}>[0-9]{{{DIGITS_OF_DIRECTIVE[name]}}}){re.escape(literal)}")
    return re.compile("".join(parts))
