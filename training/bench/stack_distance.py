"""Stack distances: how local a stream of row numbers is, whatever the cache.

The stack distance of an access is the number of distinct rows since the last access to the same row, itself counted, so that an
immediate repeat has distance 1 (Mattson et al. 1970); a row's first access has 0, as in facebookresearch/dlrm. A cache of C rows
that evicts the least recently used one hits at just the accesses of distance 1 .. C.

Shapes: T accesses, M of them repeats.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
FIRST = 0  # the distance of a first access


@dataclass(frozen=True)
class Profile:
    """A histogram of stack distances: each that occurs, in rising order, and how often."""

    distances: Ints
    counts: Ints

    @classmethod
    def of(cls, distances_T: Ints) -> "Profile":
        distances, counts = np.unique(distances_T, return_counts=True)
        return cls(distances, counts)

    @property
    def num_accesses(self) -> int:
        return int(self.counts.sum())

    @property
    def num_rows(self) -> int:
        """Distinct rows: each has one first access."""
        return int(self.counts[self.distances == FIRST].sum())

    def hit_rate(self, cache_rows: ArrayLike) -> NDArray[np.float64]:
        """Of LRU caches of so many rows, empty at first, as an array of cache_rows' shape."""
        repeats = np.where(self.distances == FIRST, 0, self.counts)
        hits = np.concatenate([[0], np.cumsum(repeats)])
        return np.asarray(
            hits[np.searchsorted(self.distances, cache_rows, side="right")] / self.num_accesses
        )


def stack_distances(rows_T: NDArray[np.integer]) -> Ints:
    """The distance of each access, exact, in O(T log T) time and O(T) memory.

    An access at t, the last to the same row at p, has t - p - 1 accesses in between; the distinct rows among them are those accesses
    but for every s whose own last access lies behind p as well. Of repeats, listed in order of time, these are the earlier ones with
    a later last access: inversions of the list.
    """
    last_T = _last_accesses(rows_T)
    (repeats_M,) = np.nonzero(last_T >= 0)
    last_M = last_T[repeats_M]
    is_last = np.zeros(len(rows_T), bool)
    is_last[last_M] = True
    rank_M = (np.cumsum(is_last) - 1)[
        last_M
    ]  # no two repeats have the same last access, so this is a permutation
    distances_T = np.full(len(rows_T), FIRST, np.int64)
    distances_T[repeats_M] = repeats_M - last_M - _earlier_and_greater(rank_M)
    return distances_T


def _last_accesses(rows_T: NDArray[np.integer]) -> Ints:
    """Where each access's row was accessed before, -1 if nowhere."""
    order_T = np.argsort(rows_T, kind="stable")
    same = rows_T[order_T[1:]] == rows_T[order_T[:-1]]
    last_T = np.full(len(rows_T), -1, np.int64)
    last_T[order_T[1:][same]] = order_T[:-1][same]
    return last_T


def _earlier_and_greater(values_M: Ints) -> Ints:
    """For each element of a permutation of 0 .. M-1, how many before it are greater.

    From the highest bit down, elements stand grouped by the bits above, in their first order within a group. Two elements part at one
    bit; there the element with 0 counts those before it in its group with 1. As the values are a permutation, the group of values
    v .. v + 2^k - 1 also begins at position v.
    """
    count_M = np.zeros(len(values_M), np.int64)  # by value
    grouped_M = values_M
    place_M = np.arange(len(values_M))
    for bit in reversed(range(max(1, len(values_M) - 1).bit_length())):
        is_one = (grouped_M >> bit & 1).astype(bool)
        ones_before = np.cumsum(is_one) - is_one
        start_M = grouped_M >> bit + 1 << bit + 1
        ones_before -= ones_before[start_M]
        zeros = ~is_one
        count_M[grouped_M[zeros]] += ones_before[zeros]
        target_M = np.where(is_one, start_M + (1 << bit) + ones_before, place_M - ones_before)
        regrouped_M = np.empty_like(grouped_M)
        regrouped_M[target_M] = grouped_M
        grouped_M = regrouped_M
    return count_M[values_M]
