"""Columns of Arrow texts that are hex digits, as numbers."""

import re

import numpy as np
import pyarrow as pa

from features.ingest.readers.column_types import MAX_HEX_DIGITS
from features.ingest.readers.digits import parse_hex32
from features.ingest.readers.fields import PADDING_BYTES, Fields
from features.schema.listed_values import numbers_of

HEX32 = re.compile(f"[0-9a-fA-F]{{1,{MAX_HEX_DIGITS}}}")
OFFSET_DTYPES: dict[pa.DataType, type[np.signedinteger]] = {
    pa.string(): np.int32,
    pa.large_string(): np.int64,
}


def are_other_texts(null_tokens: list[str]) -> bool:
    """Return whether no null token is hex digits, or a number, which could be equal to one."""
    return not numbers_of(null_tokens) and not any(map(HEX32.fullmatch, null_tokens))


def hex32_of(texts: pa.Array) -> pa.Array | None:
    """Read texts of up to eight hex digits as uint32 (N,); nulls stay nulls.

    Args:
        texts: A valid array (N,) of any type. Of a dictionary, each value is read once.

    Returns:
        The numbers; None if it is not an array of texts, or if a text is anything else.
    """
    if pa.types.is_dictionary(texts.type):
        if len(texts.dictionary) > len(texts):  # the values of other rows are in it too
            return hex32_of(texts.dictionary_decode()) if _has_offsets(texts.dictionary) else None
        numbers = hex32_of(texts.dictionary)
        if numbers is None:
            return None
        return pa.DictionaryArray.from_arrays(texts.indices, numbers).dictionary_decode()
    return _hex32_of_plain(texts) if _has_offsets(texts) and len(texts) else None


def _has_offsets(texts: pa.Array) -> bool:
    return texts.type in OFFSET_DTYPES


def _hex32_of_plain(texts: pa.Array) -> pa.Array | None:
    _, offsets, data = texts.buffers()
    positions = np.frombuffer(offsets, OFFSET_DTYPES[texts.type])[texts.offset :][: len(texts) + 1]
    padded = b"".join([bytes(PADDING_BYTES), memoryview(data)[positions[0] : positions[-1]]])
    ends = positions.astype(np.int64) + (PADDING_BYTES - positions[0])
    fields = Fields(padded, (ends - 1)[:-1].reshape(-1, 1), ends[1:].reshape(-1, 1))
    numbers = parse_hex32(fields, slice(0, 1))
    if numbers is None:
        return None
    values, is_present = numbers.values[0], numbers.is_present[0]
    if not texts.null_count:
        return pa.array(values) if is_present.all() else None
    is_valid = np.asarray(texts.is_valid())
    return pa.array(values, mask=~is_valid) if (is_valid == is_present).all() else None
