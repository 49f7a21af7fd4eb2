"""Values to their places in a vocabulary: a hash table in NumPy, built once per vocabulary and read by whole columns.

Beside Polars' replace_strict, which builds its table anew for each batch: three times as fast (docs/decisions.md).
"""

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing (Knuth, TAOCP 6.4) spreads what is alike
NOT_THERE = -1


class Lookup:
    """values: distinct, (n,) uint32. Open addressing with linear probing; at most half of the slots are taken."""

    def __init__(self, values: NDArray[np.uint32]) -> None:
        self.bits = max(int(2 * len(values) - 1).bit_length(), 1)
        self.mask = (1 << self.bits) - 1
        self.key = np.zeros(self.mask + 1, np.uint32)
        self.place = np.full(self.mask + 1, NOT_THERE, np.int32)
        pending = np.arange(len(values), dtype=np.int32)
        slot = self._slot(values)
        while len(pending):
            free = self.place[slot] == NOT_THERE
            self.place[slot[free]] = pending[free]  # of several for one slot, one stays: whichever, it is found again
            waits = self.place[slot] != pending
            pending, slot = pending[waits], (slot[waits] + 1) & self.mask
        taken = self.place != NOT_THERE
        self.key[taken] = values[self.place[taken]]

    def __call__(self, wanted: NDArray[np.uint32]) -> NDArray[np.int32]:
        """The place of each wanted value among the values, NOT_THERE for others; same shape."""
        slot = self._slot(wanted)
        place, other = self.place[slot], self.key[slot] != wanted
        going = np.flatnonzero(other & (place != NOT_THERE))  # those whose slot holds another value go on to the next one
        place[other] = NOT_THERE
        while len(going):
            slot[going] = (slot[going] + 1) & self.mask
            at = slot[going]
            found = self.key[at] == wanted[going]
            place[going[found]] = self.place[at[found]]
            going = going[~found & (self.place[at] != NOT_THERE)]
        return place

    def _slot(self, values: NDArray[np.uint32]) -> NDArray[np.intp]:
        return ((values.astype(np.uint64) * GOLDEN) >> np.uint64(64 - self.bits)).astype(np.intp)
