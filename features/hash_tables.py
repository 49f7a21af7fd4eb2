"""Hash tables of integers: the ids of a vocabulary, and the counts of values.

They are C++ (hash_tables.cpp), which is compiled once per machine. Without a compiler, pandas makes
the table of ids, and `count_integers` returns None. The serving image has neither a compiler nor
pandas: there a table is a sorted array, in which values are searched.
"""

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.cpp import Signatures, load_library

SOURCE = Path(__file__).with_name("hash_tables.cpp")
POINTER, INT = ctypes.c_void_p, ctypes.c_int64
SIGNATURES: Signatures = {
    "slot_bytes": [INT],
    "build_table": [INT, POINTER, INT, INT, POINTER],
    "look_up_ids": [INT, POINTER, INT, INT, POINTER, INT, INT, INT, POINTER],
    "count_values": [INT, POINTER, INT, INT, POINTER, POINTER],
}
# The number of distinct values up to which a table counts faster than sorting, because it fits in
# the CPU's cache.
MAX_COUNTED = 1 << 16
SHORT_DTYPES = (np.uint32, np.int32)  # other integers are looked up as int64


class IdTable(Protocol):
    """A table of distinct integers. Threads may share it."""

    def ids_of(
        self, values: NDArray[Any], num_known: int, first_id: int, unseen_id: int
    ) -> NDArray[np.int32]:
        """Return an id for each value: first_id + its position, or unseen_id.

        Args:
            values: Values (B,), of the dtype of the vocabulary.
            num_known: The number of first values of the vocabulary that are known; all later ones
                are unseen.
            first_id: The id of the first value of the vocabulary.
            unseen_id: The id of a value that is not known.

        Returns:
            Ids (B,).
        """


def make_id_table(vocabulary: NDArray[Any]) -> IdTable:
    """Make the table of a vocabulary (V,) of distinct integers; V is at least 1."""
    if library():
        return CompiledIdTable(vocabulary)
    return PandasIdTable(vocabulary) if find_spec("pandas") else SortedIdTable(vocabulary)


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled functions; None without a compiler."""
    return load_library("tables", [SOURCE], SIGNATURES)


class CompiledIdTable:
    """A table that hash_tables.cpp makes and reads."""

    def __init__(self, vocabulary: NDArray[Any]) -> None:
        loaded = library()
        assert loaded is not None
        self.library = loaded
        self.dtype = vocabulary.dtype
        values = _contiguous(vocabulary)
        self.num_bits = max(1, (2 * len(values) - 1).bit_length())
        slot_bytes = loaded.slot_bytes(values.itemsize)
        self.slots = np.empty(slot_bytes << self.num_bits, np.uint8)
        loaded.build_table(
            values.itemsize,
            values.ctypes.data,
            len(values),
            self.num_bits,
            self.slots.ctypes.data,
        )

    def ids_of(
        self, values: NDArray[Any], num_known: int, first_id: int, unseen_id: int
    ) -> NDArray[np.int32]:
        """Return an id for each value."""
        assert values.dtype == self.dtype
        values = _contiguous(values)
        ids = np.empty(len(values), np.int32)
        self.library.look_up_ids(
            values.itemsize,
            values.ctypes.data,
            len(values),
            self.num_bits,
            self.slots.ctypes.data,
            num_known,
            first_id,
            unseen_id,
            ids.ctypes.data,
        )
        return ids


class PandasIdTable:
    """A table of pandas, whose lookups take longer."""

    def __init__(self, vocabulary: NDArray[Any]) -> None:
        import pandas as pd  # here, because it takes long, and is not needed with a compiler

        self.index = pd.Index(vocabulary)
        # The first lookup builds the table. It is done here, because threads share the table later.
        # pandas needs no table for few values, or for exactly the values of the index, so one value
        # more is looked up.
        self.index.get_indexer(np.resize(vocabulary, len(vocabulary) + 1))

    def ids_of(
        self, values: NDArray[Any], num_known: int, first_id: int, unseen_id: int
    ) -> NDArray[np.int32]:
        """Return an id for each value."""
        positions = self.index.get_indexer(values).astype(np.int32)
        ids = positions + np.int32(first_id)
        ids[(positions < 0) | (positions >= num_known)] = unseen_id
        return ids


class SortedIdTable:
    """A sorted vocabulary, in which values are found by binary search."""

    def __init__(self, vocabulary: NDArray[Any]) -> None:
        self.positions = np.argsort(vocabulary).astype(np.int32)
        self.sorted = vocabulary[self.positions]

    def ids_of(
        self, values: NDArray[Any], num_known: int, first_id: int, unseen_id: int
    ) -> NDArray[np.int32]:
        """Return an id for each value."""
        places = np.searchsorted(self.sorted, values)
        places[places == len(self.sorted)] = 0  # larger than the whole vocabulary
        positions = self.positions[places]
        ids = positions + np.int32(first_id)
        ids[(self.sorted[places] != values) | (positions >= num_known)] = unseen_id
        return ids


def count_integers(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint64]] | None:
    """Count integers.

    Args:
        values: Integers (N,) of any dtype.

    Returns:
        The distinct values in ascending order, of the dtype of `values`, and the number of times
        that each occurs. None without a compiler, or if more than MAX_COUNTED are distinct.
    """
    loaded = library()
    if loaded is None:
        return None
    dtype, values = values.dtype, _contiguous(values)
    limit = min(len(values), MAX_COUNTED)
    distinct, rows = np.empty(limit, values.dtype), np.empty(limit, np.uint64)
    found = loaded.count_values(
        values.itemsize,
        values.ctypes.data,
        len(values),
        limit,
        distinct.ctypes.data,
        rows.ctypes.data,
    )
    if found < 0:
        return None
    order = np.argsort(distinct[:found].astype(dtype))
    return distinct[order].astype(dtype), rows[order]


def _contiguous(values: NDArray[Any]) -> NDArray[Any]:
    dtype = values.dtype if values.dtype in SHORT_DTYPES else np.dtype(np.int64)
    return np.ascontiguousarray(values, dtype)
