"""Digits to numbers, eight at a time: a field is loaded as one 64-bit word, and each step below works on all its bytes together.

A word holds up to 8 characters, the last one in its highest byte, zeros below the first. Functions return None unless every field can
be read this way; what they read, they read as Polars' casts do, which is what other fields are left to.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.ingest.readers.fields import STEP, WORD, Fields, Positions, Words

MAX_DIGITS = 2 * WORD


class Numbers(NamedTuple):
    """Values of C columns in R lines; filled: false where the field is empty, and the value 0. Both C x R."""

    values: NDArray[Any]
    filled: NDArray[np.bool_]

    @classmethod
    def empty(cls, num_columns: int, num_rows: int, dtype: type[np.generic]) -> "Numbers":
        return cls(
            np.empty((num_columns, num_rows), dtype), np.empty((num_columns, num_rows), np.bool_)
        )


def _u64(value: int) -> np.uint64:
    return np.uint64(value)


def _each(byte: int) -> np.uint64:
    """A word of eight such bytes."""
    return np.uint64(int.from_bytes(bytes([byte] * WORD), "little"))


HIGH_BITS = _each(0x80)
ALL_BITS = _each(0xFF)


def label(fields: Fields, columns: slice) -> Numbers | None:
    """Labels (u8): each field is one character, 0 or 1."""
    last = fields.ends[:, columns] - 1
    values = fields.bytes[last] - np.uint8(ord("0"))  # below "0" it wraps around
    one_each = bool((last - 1 == fields.before[:, columns]).all())
    return (
        Numbers(values.T, np.ones(values.T.shape, np.bool_))
        if one_each and bool((values <= 1).all())
        else None
    )


def hex32(fields: Fields, columns: slice) -> Numbers | None:
    """Values (u32) of up to eight hex digits."""
    numbers = Numbers.empty(columns.stop - columns.start, len(fields.ends), np.uint32)
    for rows in _steps(fields, columns):
        ends, length = _ends_and_lengths(fields, rows, columns)
        if length.max() > WORD:
            return None
        chars = _chars(fields, ends, length)
        letters = chars & _each(0xDF)  # a-f become A-F, which are now 0x51 to 0x56
        is_letter = (letters + _each(0x80 - 0x51)) & ~(letters + _each(0x80 - 0x57))
        if _any_high_bit(chars | (chars + _each(0x80 - 10)) & ~is_letter):
            return None
        nibbles = (chars & _each(0x0F)) + ((chars >> _u64(6)) & _each(1)) * _u64(
            9
        )  # bit 6 tells the letters, and A is ..1
        nibbles = (nibbles << _u64(4) | nibbles >> _u64(8)) & _u64(0x00FF00FF00FF00FF)
        nibbles = (nibbles | nibbles >> _u64(8)) & _u64(0x0000FFFF0000FFFF)
        numbers.values[:, rows] = (nibbles | nibbles >> _u64(16)).T
        numbers.filled[:, rows] = (length > 0).T
    numbers.values.byteswap(inplace=True)  # the first digits are in the lowest byte
    return numbers


def integers(fields: Fields, columns: slice) -> Numbers | None:
    """Values (i64) of up to 16 decimal digits, a minus before them or not."""
    numbers = Numbers.empty(columns.stop - columns.start, len(fields.ends), np.int64)
    for rows in _steps(fields, columns):
        ends, length = _ends_and_lengths(fields, rows, columns)
        numbers.filled[:, rows] = (length > 0).T
        negative = (fields.bytes[ends - length] == ord("-")) & (length > 0)
        length -= negative
        if length.max() > MAX_DIGITS or (negative & (length == 0)).any():
            return None
        value = _decimal(_chars(fields, ends, np.minimum(length, WORD)))
        if value is not None and length.max() > WORD:
            high = _decimal(_chars(fields, ends - WORD, np.maximum(length - WORD, 0)))
            value = None if high is None else value + high * _u64(10**WORD)
        if value is None:
            return None
        signed = value.view(np.int64)
        np.negative(signed, out=signed, where=negative)
        numbers.values[:, rows] = signed.T
    return numbers


def _chars(fields: Fields, ends: Positions, length: Positions) -> Words:
    """The last `length` (0 to 8) bytes before the ends, each with the bits of "0" turned, so that a digit is its value; else 0."""
    kept = ALL_BITS << ((WORD - length) << 3).view(np.uint64)  # a shift by all 64 bits leaves 0
    chars: Words = (fields.words[ends - WORD] ^ _each(ord("0"))) & kept
    return chars


def _decimal(digits: Words) -> Words | None:
    if _any_high_bit(digits | (digits + _each(0x80 - 10))):
        return None
    pairs = (digits * _u64(10) + (digits >> _u64(8))) & _u64(0x00FF00FF00FF00FF)
    fours = (pairs * _u64(100) + (pairs >> _u64(16))) & _u64(0x0000FFFF0000FFFF)
    eights: Words = (fours * _u64(10_000) + (fours >> _u64(32))) & _u64(0xFFFFFFFF)
    return eights


def _any_high_bit(words: Words) -> bool:
    """Whether any byte is 0x80 or more; a sum that overflows into the next byte comes from such a byte, or is one."""
    return bool(np.bitwise_or.reduce(words, axis=None) & HIGH_BITS)


def _ends_and_lengths(fields: Fields, rows: slice, columns: slice) -> tuple[Positions, Positions]:
    ends = fields.ends[rows, columns]
    return ends, ends - fields.before[rows, columns] - 1


def _steps(fields: Fields, columns: slice) -> list[slice]:
    num_rows = max(1, STEP // (WORD * (columns.stop - columns.start)))
    return [slice(start, start + num_rows) for start in range(0, len(fields.ends), num_rows)]
