"""Stack distances: a measure of the locality of a stream of table rows, for caches of every size.

The stack distance of an access is the number of distinct rows since the last access to the same
row, that row included, so an immediate repeat has distance 1 (Mattson et al. 1970, "Evaluation
Techniques for Storage Hierarchies"). The first access to a row has distance 0, as in
facebookresearch/dlrm. A cache of C rows that evicts the least recently used row has a hit at
exactly the accesses with the distances 1 to C.

Shapes: T accesses, M of them repeats.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
FIRST = 0  # the distance of a first access


@dataclass(frozen=True)
class DistanceHistogram:
    """A histogram of stack distances.

    Attributes:
        distances: The distances that occur, in ascending order.
        counts: How often each of them occurs.
    """

    distances: Ints
    counts: Ints

    @classmethod
    def of(cls, distances_T: Ints) -> "DistanceHistogram":
        """Count the stack distances of T accesses."""
        distances, counts = np.unique(distances_T, return_counts=True)
        return cls(distances, counts)

    @property
    def num_accesses(self) -> int:
        """The number of accesses."""
        return int(self.counts.sum())

    @property
    def num_rows(self) -> int:
        """The number of distinct rows, each of which has one first access."""
        return int(self.counts[self.distances == FIRST].sum())

    def hit_rate(self, cache_rows: ArrayLike) -> NDArray[np.float64]:
        """Compute the hit rates of LRU caches that are empty at first.

        Args:
            cache_rows: Sizes of caches in rows.

        Returns:
            A hit rate for each size, in the shape of cache_rows.
        """
        repeats = np.where(self.distances == FIRST, 0, self.counts)
        hits = np.concatenate([[0], np.cumsum(repeats)])
        num_distances = np.searchsorted(self.distances, cache_rows, side="right")
        return np.asarray(hits[num_distances] / self.num_accesses)


def stack_distances(rows_T: NDArray[np.integer]) -> Ints:
    """Compute the stack distance of each access in O(T log T) time and O(T) memory.

    Take an access at time t whose row had its previous access at time p. There are t - p - 1
    accesses in between. The distinct rows among them are these accesses without those whose own
    previous access is later than p, because these are repeats. If all repeats are listed in the
    order of time, the accesses to be left out are earlier in the list and have a later previous
    access: they are inversions of the list.

    Args:
        rows_T: The row of each access, in the order of time, (T,).

    Returns:
        Stack distances, int64 (T,).
    """
    previous_T = _previous_accesses(rows_T)
    (repeats_M,) = np.nonzero(previous_T >= 0)
    previous_M = previous_T[repeats_M]
    is_previous = np.zeros(len(rows_T), bool)
    is_previous[previous_M] = True
    # No two repeats have the same previous access, so their ranks are a permutation of 0 .. M-1.
    rank_M = (np.cumsum(is_previous) - 1)[previous_M]
    distances_T = np.full(len(rows_T), FIRST, np.int64)
    distances_T[repeats_M] = repeats_M - previous_M - _count_earlier_and_greater(rank_M)
    return distances_T


def _previous_accesses(rows_T: NDArray[np.integer]) -> Ints:
    """Return the time of the previous access to the row of each access, -1 if there is none."""
    order_T = np.argsort(rows_T, kind="stable")
    same = rows_T[order_T[1:]] == rows_T[order_T[:-1]]
    previous_T = np.full(len(rows_T), -1, np.int64)
    previous_T[order_T[1:][same]] = order_T[:-1][same]
    return previous_T


def _count_earlier_and_greater(values_M: Ints) -> Ints:
    """Count, for each element of a permutation of 0 .. M-1, the greater elements before it.

    The bits are processed from the highest to the lowest. The elements are kept in groups that have
    the same higher bits, within a group in their first order. Two elements are separated at exactly
    one bit. There, the element with a 0 counts the elements before it in its group that have a 1.
    Because the values are a permutation, the group of the values v .. v + 2^k - 1 begins at the
    position v.
    """
    count_by_value_M = np.zeros(len(values_M), np.int64)
    grouped_M = values_M
    position_M = np.arange(len(values_M))
    for bit in reversed(range(max(1, len(values_M) - 1).bit_length())):
        is_one = (grouped_M >> bit & 1).astype(bool)
        ones_before = np.cumsum(is_one) - is_one
        start_M = grouped_M >> bit + 1 << bit + 1
        ones_before -= ones_before[start_M]
        is_zero = ~is_one
        count_by_value_M[grouped_M[is_zero]] += ones_before[is_zero]
        target_M = np.where(is_one, start_M + (1 << bit) + ones_before, position_M - ones_before)
        regrouped_M = np.empty_like(grouped_M)
        regrouped_M[target_M] = grouped_M
        grouped_M = regrouped_M
    return count_by_value_M[values_M]
