"""Positions of the fields in a block of delimited text, found on the block's bytes.

The compiled loop finds them (compiled.py), or NumPy where there is no compiler or where there are
quotes.

No Python object is made for a field. Numbers are read from the bytes (`digits`), and text columns
become Arrow strings that share the block's bytes.

R is the number of lines of a block, C the number of its columns.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.ingest.readers import compiled
from features.ingest.readers.blocks import is_utf8

LF = ord("\n")
WORD_BYTES = 8
# Line ends that are added before and after the text, so that words beside each field can be loaded.
PADDING_BYTES = 16
# The number of bytes, or of values, that are worked on together: they fit in the CPU's cache.
CHUNK_BYTES = 1 << 18
# An entry of an Arrow string view is two words. A string of up to 12 bytes is in the entry itself.
# Of a longer string, the entry contains the first 4 bytes and the position in a buffer.
# https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout
MAX_INLINE_BYTES = 12
PREFIX_BYTES = 4
HALF_WORD_BITS = np.uint64(32)

Positions = NDArray[np.int64]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Fields:
    """The fields of R lines with C columns each, as positions in the bytes of a block.

    Attributes:
        data: The text with padding before and after it.
        before: The position of the byte before each field, int64 (R, C).
        ends: The position of the byte after each field, int64 (R, C).
    """

    data: bytes
    before: Positions
    ends: Positions

    @cached_property
    def bytes(self) -> NDArray[np.uint8]:
        """The data as an array of bytes, without a copy."""
        return np.frombuffer(self.data, np.uint8)

    @cached_property
    def words(self) -> Words:
        """The word at each position: `words[i]` is `data[i : i + 8]` as a little-endian integer.

        It is a view of the data whose elements overlap, so it costs no memory.
        """
        num_words = len(self.data) - WORD_BYTES + 1
        return np.ndarray((num_words,), "<u8", self.data, offset=0, strides=(1,))

    def ends_and_lengths(self, rows: slice, columns: slice) -> tuple[Positions, Positions]:
        """Return the end positions and the lengths in bytes of some fields."""
        ends = self.ends[rows, columns]
        return ends, ends - self.before[rows, columns] - 1

    def strings(self, column: int) -> pa.Array:
        """Return a column as an Arrow string view (R) that shares the data; it has no nulls."""
        starts = self.before[:, column] + 1
        lengths = self.ends[:, column] - starts
        prefixes = first_bytes(self.words[starts], np.minimum(lengths, PREFIX_BYTES))
        rests = first_bytes(
            self.words[starts + PREFIX_BYTES], np.clip(lengths - PREFIX_BYTES, 0, WORD_BYTES)
        )
        positions = starts.view(np.uint64) << HALF_WORD_BITS  # in buffer 0, the only one
        views = np.empty((len(starts), 2), np.uint64)
        views[:, 0] = lengths.view(np.uint64) | (prefixes << HALF_WORD_BITS)
        views[:, 1] = np.where(lengths <= MAX_INLINE_BYTES, rests, positions)
        buffers = [None, pa.py_buffer(views), pa.py_buffer(self.data)]
        return pa.Array.from_buffers(pa.string_view(), len(starts), buffers)


def first_bytes(words: Words, lengths: Positions) -> Words:
    """Keep the first `lengths` (0 to 8) bytes of each word and set the others to zero."""
    num_bits_to_clear = ((WORD_BYTES - lengths) << 3).view(np.uint64)
    kept: Words = (words << num_bits_to_clear) >> num_bits_to_clear
    return kept


def find_fields(
    text: bytes, num_lines: int, num_columns: int, separator: str, quote: str | None
) -> Fields | None:
    """Find the fields of a text whose lines all have the expected number of fields.

    A quoted field is found without its quotes. The function gives up where a quote is inside a
    field or is doubled; such lines are split one by one.

    Args:
        text: Whole lines, each of them ended by LF.
        num_lines: The number of lines.
        num_columns: The expected number of fields in each line.
        separator: The character between two fields.
        quote: The character around quoted fields; None if there are no quoted fields.

    Returns:
        The fields, or None if the text is not UTF-8, if a line has another number of fields, or if
        there are quotes other than around whole fields.
    """
    if num_lines * num_columns > len(text):
        return None  # a field has at least one byte, its delimiter
    quote_byte = ord(quote) if quote and quote.encode() in text else None
    if not is_utf8(text) or (quote_byte and b"\r" in text):
        return None
    padding = b"\n" * PADDING_BYTES
    data = b"".join([padding, text, padding])
    without_end_padding = np.frombuffer(data, np.uint8)[:-PADDING_BYTES]
    delimiters = _find_delimiters(
        without_end_padding, num_lines * num_columns, ord(separator), quote_byte
    )
    if delimiters is None:
        return None
    before = delimiters[:-1].reshape(-1, num_columns)
    ends = delimiters[1:].reshape(-1, num_columns)
    if not (without_end_padding[ends[:, -1]] == LF).all():
        return None
    if quote_byte is None:
        return Fields(data, before, ends)
    is_quoted = (
        (without_end_padding[before + 1] == quote_byte)
        & (without_end_padding[ends - 1] == quote_byte)
        & (ends - before > 2)
    )
    if 2 * int(is_quoted.sum()) != text.count(quote_byte):
        return None
    return Fields(data, before + is_quoted, ends - is_quoted)


def _find_delimiters(
    data: NDArray[np.uint8], num_fields: int, separator: int, quote: int | None
) -> Positions | None:
    """Find the separators and line ends that are not inside quotes.

    Returns:
        The position of the padding's last LF, then those of the text's delimiters, int64
        (num_fields + 1); None if the text has another number of delimiters than of fields.
    """
    delimiters = np.empty(num_fields + 1, np.int64)
    if quote is None and compiled.library():
        is_whole = compiled.find_delimiters(data, PADDING_BYTES - 1, separator, delimiters)
        return delimiters if is_whole else None
    num_found = 0
    is_inside_quotes = False
    for start in range(PADDING_BYTES - 1, len(data), CHUNK_BYTES):
        chunk = data[start : start + CHUNK_BYTES]
        is_delimiter = chunk == separator
        is_delimiter |= chunk == LF
        if quote is not None:
            # A byte is inside quotes if the number of quotes up to it is odd.
            is_inside = np.logical_xor.accumulate(chunk == quote) ^ is_inside_quotes
            is_inside_quotes = bool(is_inside[-1])
            is_delimiter &= ~is_inside
        positions = np.flatnonzero(is_delimiter)
        if num_found + len(positions) > len(delimiters):
            return None
        np.add(positions, start, out=delimiters[num_found : num_found + len(positions)])
        num_found += len(positions)
    return delimiters if num_found == len(delimiters) else None
