"""Where the fields of a block of text are: NumPy on its bytes, no string of a field is made unless its column holds text."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.ingest.readers.blocks import is_utf8

LF = 10
PAD = 16  # bytes around the text, so that a word beside any field can be loaded
STEP = 1 << 18  # bytes, and values: what is worked on together stays in the cache
WORD = 8
INLINE = 12  # Arrow keeps shorter strings in the view itself

Positions = NDArray[np.int64]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Fields:
    """The fields of R lines with C columns each, as places in `data`.

    before, ends (R x C): the place of the byte before a field, and of the one behind it.
    """

    data: bytes
    before: Positions
    ends: Positions

    @cached_property
    def bytes(self) -> NDArray[np.uint8]:
        return np.frombuffer(self.data, np.uint8)

    @cached_property
    def words(self) -> Words:
        """words[i] is the 8 bytes of data from i on, little-endian: a view, at every place."""
        return np.ndarray((len(self.data) - WORD + 1,), "<u8", self.data, 0, (1,))

    def strings(self, column: int) -> pa.Array:
        """R strings that share the block's bytes, without nulls."""
        start, length = (
            self.before[:, column] + 1,
            self.ends[:, column] - self.before[:, column] - 1,
        )
        views = np.empty((len(start), 2), np.uint64)
        short = length <= INLINE
        views[:, 0] = length.view(np.uint64) | (
            first_bytes(self.words[start], np.minimum(length, 4)) << np.uint64(32)
        )
        rest = first_bytes(self.words[start + 4], np.clip(length - 4, 0, WORD))
        views[:, 1] = np.where(
            short, rest, start.view(np.uint64) << np.uint64(32)
        )  # the buffer's number is 0
        buffers = [None, pa.py_buffer(views), pa.py_buffer(self.data)]
        return pa.Array.from_buffers(pa.string_view(), len(start), buffers)


def first_bytes(words: Words, lengths: Positions) -> Words:
    """The words' first bytes (0 to 8 of them), the others made zero."""
    gone = ((WORD - lengths) << 3).view(np.uint64)
    kept: Words = (words << gone) >> gone
    return kept


def find_fields(
    text: bytes, num_lines: int, num_columns: int, separator: str, quote: str | None
) -> Fields | None:
    """The fields, or None unless the text is UTF-8 and each line has num_columns of them.

    A quoted field is `quote`, any bytes but `quote`, `quote`. With other quotes in the text (in the middle of a field, or doubled) the
    answer is None too: such lines are read one by one.
    """
    quote_byte = ord(quote) if quote and quote.encode() in text else None
    if not is_utf8(text) or (quote_byte and b"\r" in text):
        return None
    padding = b"\n" * PAD
    data = b"".join([padding, text, padding])
    inner = np.frombuffer(data, np.uint8)[:-PAD]
    marks = _marks(inner, num_lines * num_columns, ord(separator), quote_byte)
    if marks is None:
        return None
    before, ends = marks[:-1].reshape(-1, num_columns), marks[1:].reshape(-1, num_columns)
    if not (inner[ends[:, -1]] == LF).all():
        return None
    if quote_byte is None:
        return Fields(data, before, ends)
    quoted = (
        (inner[before + 1] == quote_byte) & (inner[ends - 1] == quote_byte) & (ends - before > 2)
    )
    if 2 * int(quoted.sum()) != text.count(quote_byte):
        return None
    return Fields(data, before + quoted, ends - quoted)


def _marks(
    inner: NDArray[np.uint8], num_fields: int, separator: int, quote: int | None
) -> Positions | None:
    """The places of unquoted separators and line ends, behind that of the padding's last LF; None unless there are num_fields of them."""
    marks = np.empty(num_fields + 1, np.int64)
    num_found = 0
    inside = False
    for start in range(PAD - 1, len(inner), STEP):
        part = inner[start : start + STEP]
        is_mark = part == separator
        is_mark |= part == LF
        if quote is not None:
            odd = np.logical_xor.accumulate(part == quote) ^ inside
            inside = bool(odd[-1])
            is_mark &= ~odd
        places = np.flatnonzero(is_mark)
        if num_found + len(places) > len(marks):
            return None
        np.add(places, start, out=marks[num_found : num_found + len(places)])
        num_found += len(places)
    return marks if num_found == len(marks) else None
