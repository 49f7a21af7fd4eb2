"""How the lines of a text log are split: separator, quote, and whether there is a header."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from common.files import DataError
from features.infer.times import looks_like_time
from features.schema.listed_values import NUMBER

SEPARATORS = ("\t", ",", ";", "|", "\x01")
QUOTE = '"'
MIN_SHARE = 0.9  # of the lines, that must have the same number of fields
MIN_COLUMNS = 3  # a label and two features
MAX_COMPARED_LINES = 1000
NUMBERED_HEADER = 4  # columns from which `0,1,2,3` is taken for a header, as pandas writes it


class TextLayout(NamedTuple):
    """How lines are split.

    Attributes:
        separator: The character between two fields.
        quote: The character around fields; None if there is none.
        header: Whether the first line has the names of the columns.
    """

    separator: str
    quote: str | None
    header: bool

    def split(self, line: str) -> list[str] | None:
        """Split a line into fields; None where its quotes are not closed."""
        return _split(line, self.separator, self.quote)


def find_layout(lines: Sequence[str], path: object) -> TextLayout:
    """Find the layout of a log that begins with these lines.

    Args:
        lines: The first lines, without their ends.
        path: The file, for the message.

    Raises:
        DataError: No separator gives most lines the same number of fields.
    """
    compared = lines[:MAX_COMPARED_LINES]
    best: tuple[float, int, str, str | None] = (0.0, 0, "", None)
    for separator in SEPARATORS:
        quote = QUOTE if any(_has_quoted_field(line, separator) for line in compared) else None
        widths = [len(_split(line, separator, quote) or ()) for line in compared]
        width, count = Counter(widths).most_common(1)[0]
        share = count / len(widths)
        if width >= MIN_COLUMNS and share >= MIN_SHARE and (share, width) > best[:2]:
            best = (share, width, separator, quote)
    _, width, separator, quote = best
    if not separator:
        raise DataError(
            f"{path}: no separator (tab , ; | or \\x01) gives its lines the same number of fields, "
            f"{MIN_COLUMNS} or more; it begins with {compared[0][:60]!r}. Is it a log?"
        )
    rows = [_split(line, separator, quote) for line in compared]
    header = _is_header([row for row in rows if row and len(row) == width])
    return TextLayout(separator, quote, header)


def _split(line: str, separator: str, quote: str | None) -> list[str] | None:
    if quote is None or quote not in line:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator, quotechar=quote, strict=True))
    except csv.Error:
        return None


def _has_quoted_field(line: str, separator: str) -> bool:
    if QUOTE not in line:
        return False
    one = re.escape(separator)
    return re.search(f'(?:^|{one})"(?:[^"]|"")*"(?:$|{one})', line) is not None


def _is_header(rows: list[list[str]]) -> bool:
    """Return whether the first of some rows has names instead of values."""
    first, others = rows[0], rows[1:]
    if len(first) >= NUMBERED_HEADER and first == [str(i) for i in range(len(first))]:
        return True
    if first.count("") > 1:
        return False
    columns = list(zip(*others, strict=True)) if others else [()] * len(first)
    if any(map(_is_name_of_values, first, columns)):
        return True
    if any(_is_value(field) for field in first):
        return False
    return not any(field in column for field, column in zip(first, columns, strict=True))


def _is_name_of_values(field: str, column: Sequence[str]) -> bool:
    """Return whether a field is a text, and below it are numbers or times alone."""
    values = [value for value in column if value]
    return field != "" and not _is_value(field) and bool(values) and all(map(_is_value, values))


def _is_value(field: str) -> bool:
    """Return whether a field is a number or a time, which no column is called."""
    return NUMBER.fullmatch(field) is not None or looks_like_time(field)
