"""Numbers from the digits of delimited text, eight characters at a time.

The technique is called SWAR, "SIMD within a register". The last eight bytes of a field are loaded
as one 64-bit word, and each step works on all bytes of the word together. The compiled loop does
all steps for one field after the other (compiled.cpp); without a compiler, NumPy does one step for
all fields of a column. For decimal digits it is Daniel Lemire's "Quickly parsing eight digits"
(https://lemire.me/blog/2018/10/03/quickly-parsing-eight-digits/).

For the field `1234`, with the bytes of the word in the order of the text:

    step                           bytes
    load the word                  ?  ?  ?  ?  '1' '2' '3' '4'    ?: what is before the field
    XOR "0", clear what is before  0  0  0  0   1   2   3   4     each digit is its value
    10 * left + right              0     0      12      34        one number in two bytes
    100 * left + right             0            1234              one number in four bytes
    10,000 * left + right          1234                           one number in eight bytes

In a little-endian word the first byte of the text is the lowest byte. So `word >> 8` moves the
right neighbour of each byte to the place of the byte itself, and `word * 10 + (word >> 8)` is the
third step. The result is in the lower byte of each pair; a mask clears the other byte.

The functions return None if a field cannot be read in this way, for instance because it has too
many digits. Polars' casts read such columns, and they give equal values for the others as well.

R is the number of lines of a block, C the number of its columns that are read together.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.ingest.readers import compiled
from features.ingest.readers.fields import (
    CHUNK_BYTES,
    WORD_BYTES,
    Fields,
    Positions,
    Words,
)

MAX_DECIMAL_DIGITS = 2 * WORD_BYTES
ZERO, MINUS = ord("0"), ord("-")


class Numbers(NamedTuple):
    """The numbers in C columns of R lines.

    Attributes:
        values: The numbers (C, R).
        is_present: False where a field is empty, bool (C, R); the number there is 0.
    """

    values: NDArray[Any]
    is_present: NDArray[np.bool_]

    @classmethod
    def empty(cls, num_columns: int, num_rows: int, dtype: type[np.generic]) -> "Numbers":
        """Allocate the arrays without setting their contents."""
        shape = (num_columns, num_rows)
        return cls(np.empty(shape, dtype), np.empty(shape, np.bool_))


def _u64(value: int) -> np.uint64:
    return np.uint64(value)


def _in_each_byte(byte: int) -> np.uint64:
    """Return the word that has this value in each of its eight bytes."""
    return np.uint64(int.from_bytes(bytes([byte] * WORD_BYTES), "little"))


ALL_BITS = _in_each_byte(0xFF)
HIGH_BITS = _in_each_byte(0x80)
LOW_HALF_OF_BYTES = _in_each_byte(0x0F)
# The lower half of each group of two, four and eight bytes.
LOW_HALF_OF_2_BYTES = _u64(0x00FF_00FF_00FF_00FF)
LOW_HALF_OF_4_BYTES = _u64(0x0000_FFFF_0000_FFFF)
LOW_HALF_OF_8_BYTES = _u64(0x0000_0000_FFFF_FFFF)

# After the XOR with "0" (0x30), a-f are 0x51 to 0x56, and A-F are 0x71 to 0x76. Clearing bit 0x20
# makes both of them 0x51 to 0x56. Bit 0x40 is then set in letters and not in digits, and the lower
# half of a letter's byte is 1 to 6, which is 9 less than its value.
FIRST_LETTER, LAST_LETTER = 0x51, 0x56
WITHOUT_CASE_BIT = _in_each_byte(0xFF - 0x20)
LETTER_BIT_NUMBER = _u64(6)
LETTER_OFFSET = _u64(9)


def parse_labels(fields: Fields, columns: slice) -> Numbers | None:
    """Read fields that are all one character, 0 or 1, as uint8."""
    if compiled.library():
        return _parse_compiled("parse_labels", fields, columns, np.uint8)
    last = fields.ends[:, columns] - 1
    values = fields.bytes[last] - np.uint8(ZERO)  # characters below "0" become large numbers
    have_one_character = bool((last - 1 == fields.before[:, columns]).all())
    if not have_one_character or not bool((values <= 1).all()):
        return None
    return Numbers(values.T, np.ones(values.T.shape, np.bool_))


def parse_hex32(fields: Fields, columns: slice) -> Numbers | None:
    """Read fields of up to eight hex digits as uint32."""
    if compiled.library():
        return _parse_compiled("parse_hex32", fields, columns, np.uint32)
    numbers = Numbers.empty(columns.stop - columns.start, len(fields.ends), np.uint32)
    for rows in _chunks_of_rows(fields, columns):
        ends, lengths = fields.ends_and_lengths(rows, columns)
        if lengths.max() > WORD_BYTES:
            return None
        values = _hex_values(_load_digits(fields, ends, lengths))
        if values is None:
            return None
        numbers.values[:, rows] = values.T
        numbers.is_present[:, rows] = (lengths > 0).T
    numbers.values.byteswap(inplace=True)  # the first digits are in the lowest byte
    return numbers


def parse_integers(fields: Fields, columns: slice) -> Numbers | None:
    """Read fields of up to 16 decimal digits, with or without a minus sign, as int64."""
    if compiled.library():
        return _parse_compiled("parse_integers", fields, columns, np.int64)
    numbers = Numbers.empty(columns.stop - columns.start, len(fields.ends), np.int64)
    for rows in _chunks_of_rows(fields, columns):
        ends, lengths = fields.ends_and_lengths(rows, columns)
        numbers.is_present[:, rows] = (lengths > 0).T
        is_negative = (fields.bytes[ends - lengths] == MINUS) & (lengths > 0)
        num_digits = lengths - is_negative
        if num_digits.max() > MAX_DECIMAL_DIGITS or (is_negative & (num_digits == 0)).any():
            return None
        magnitudes = _decimal_magnitudes(fields, ends, num_digits)
        if magnitudes is None:
            return None
        values = magnitudes.view(np.int64)
        np.negative(values, out=values, where=is_negative)
        numbers.values[:, rows] = values.T
    return numbers


def _parse_compiled(
    name: str, fields: Fields, columns: slice, dtype: type[np.generic]
) -> Numbers | None:
    numbers = Numbers.empty(columns.stop - columns.start, len(fields.ends), dtype)
    before, ends = fields.before[:, columns], fields.ends[:, columns]
    return numbers if compiled.parse(name, fields.bytes, before, ends, *numbers) else None


def _decimal_magnitudes(fields: Fields, ends: Positions, num_digits: Positions) -> Words | None:
    """Read up to 16 decimal digits before each end: the last eight, and the ones before them."""
    low = _decimal_values(_load_digits(fields, ends, np.minimum(num_digits, WORD_BYTES)))
    if low is None or num_digits.max() <= WORD_BYTES:
        return low
    high = _decimal_values(
        _load_digits(fields, ends - WORD_BYTES, np.maximum(num_digits - WORD_BYTES, 0))
    )
    return None if high is None else low + high * _u64(10**WORD_BYTES)


def _load_digits(fields: Fields, ends: Positions, lengths: Positions) -> Words:
    """Load the last `lengths` (0 to 8) bytes before each end, XOR "0"; the other bytes are 0."""
    # NumPy defines a shift by all 64 bits: it leaves 0.
    mask = ALL_BITS << ((WORD_BYTES - lengths) << 3).view(np.uint64)
    digits: Words = (fields.words[ends - WORD_BYTES] ^ _in_each_byte(ZERO)) & mask
    return digits


def _decimal_values(digits: Words) -> Words | None:
    """Combine eight decimal digits, one per byte, to a number; None if a byte is not a digit."""
    if _any_high_bit(digits | _high_bit_if_at_least(10, digits)):
        return None
    pairs = (digits * _u64(10) + (digits >> _u64(8))) & LOW_HALF_OF_2_BYTES
    fours = (pairs * _u64(100) + (pairs >> _u64(16))) & LOW_HALF_OF_4_BYTES
    eights: Words = (fours * _u64(10_000) + (fours >> _u64(32))) & LOW_HALF_OF_8_BYTES
    return eights


def _hex_values(digits: Words) -> Words | None:
    """Combine eight hex digits, one per byte, to four bytes; None if a byte is not a hex digit.

    The first two digits are in the lowest byte of the result.
    """
    without_case = digits & WITHOUT_CASE_BIT
    is_letter = _high_bit_if_at_least(FIRST_LETTER, without_case) & ~_high_bit_if_at_least(
        LAST_LETTER + 1, without_case
    )
    is_not_decimal = _high_bit_if_at_least(10, digits)
    if _any_high_bit(digits | (is_not_decimal & ~is_letter)):
        return None
    letter_bits = (digits >> LETTER_BIT_NUMBER) & _in_each_byte(1)
    nibbles = (digits & LOW_HALF_OF_BYTES) + letter_bits * LETTER_OFFSET
    pairs = (nibbles << _u64(4) | nibbles >> _u64(8)) & LOW_HALF_OF_2_BYTES
    fours = (pairs | pairs >> _u64(8)) & LOW_HALF_OF_4_BYTES
    eights: Words = fours | fours >> _u64(16)
    return eights


def _high_bit_if_at_least(limit: int, words: Words) -> Words:
    """Set the high bit of each byte that is at least `limit` and below 0x80.

    A byte of 0x80 or more may carry into its neighbour. It has the high bit itself, by which the
    callers refuse it.
    """
    result: Words = words + _in_each_byte(0x80 - limit)
    return result


def _any_high_bit(words: Words) -> bool:
    """Return whether the high bit of any byte is set."""
    return bool(np.bitwise_or.reduce(words, axis=None) & HIGH_BITS)


def _chunks_of_rows(fields: Fields, columns: slice) -> list[slice]:
    """Cut the rows into chunks whose words fit in the CPU's cache."""
    num_rows = max(1, CHUNK_BYTES // (WORD_BYTES * (columns.stop - columns.start)))
    return [slice(start, start + num_rows) for start in range(0, len(fields.ends), num_rows)]
