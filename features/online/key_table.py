"""A table of the keys of several vocabularies, which looks up a whole request at once.

A key is an integer, or the hash of a text. The entries of a vocabulary are sorted by bucket, and
there are as many buckets as entries, so a bucket has one entry on average and about ten at most. A
lookup compares a key with the window of entries from the start of its bucket on. So it takes the
same few calls of NumPy for one key and for thousands.

K is the number of columns of a request, V the number of all entries, W the length of the window.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_WINDOW = 32  # a longer one does not occur, unless keys were chosen to share a bucket
FACTORS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
SHIFT, HALF = np.uint64(29), np.uint64(32)


class KeyTable:
    """The positions of keys in vocabularies. Threads may share it.

    It needs 12 bytes for each entry if all keys fit into 32 bits, else 16.

    Args:
        vocabularies: The distinct keys of each vocabulary, int64.
        columns: For each of the K columns of a request, the number of its vocabulary.

    Raises:
        ValueError: Too many keys of a vocabulary share a bucket, or they are not distinct.
    """

    def __init__(self, vocabularies: Sequence[NDArray[np.int64]], columns: Sequence[int]) -> None:
        buckets = [_buckets(keys, np.uint64(len(keys))) for keys in vocabularies]
        counts = [np.bincount(of, minlength=max(len(of), 1)) for of in buckets]
        window = max((int(of.max()) for of in counts), default=1)
        if window > MAX_WINDOW:
            raise ValueError(f"{window} keys share a bucket, {MAX_WINDOW} are allowed")
        self._window = np.arange(max(window, 1))
        # A window may reach beyond the entries of its vocabulary. There it meets copies of one of
        # them, which is found in its own bucket first; if there are none, entries without position.
        dtype, pad = _smallest_dtype(vocabularies), len(self._window)
        sizes = [len(keys) + pad for keys in vocabularies]
        self._keys = np.zeros(sum(sizes), dtype)
        self._positions = np.full(sum(sizes), -1, np.int32)
        self._starts = np.empty(sum(map(len, counts)), np.int32)
        first_buckets, first_bucket, first = [], 0, 0
        for keys, of_keys, counted, size in zip(vocabularies, buckets, counts, sizes, strict=True):
            order = np.argsort(of_keys, kind="stable")
            if len(order):
                order = np.resize(order, size)
            self._keys[first : first + len(order)] = keys[order]
            self._positions[first : first + len(order)] = order
            after = first_bucket + len(counted)
            self._starts[first_bucket:after] = first + np.cumsum(counted) - counted
            first_buckets.append(first_bucket)
            first_bucket, first = after, first + size
        self._first_bucket_K = np.array([first_buckets[k] for k in columns], np.int64)
        self._num_buckets_K = np.array([len(vocabularies[k]) for k in columns], np.uint64)

    @property
    def num_bytes(self) -> int:
        """The memory of the table."""
        return self._starts.nbytes + self._keys.nbytes + self._positions.nbytes

    def positions_of(self, keys_BK: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the position of each key in the vocabulary of its column, -1 if it is not there.

        Args:
            keys_BK: The keys, of B rows.
        """
        buckets = _buckets(keys_BK, self._num_buckets_K)
        buckets += self._first_bucket_K
        starts = self._starts.take(buckets)
        # A key out of the table's range is found nowhere, or equals another key for the moment.
        narrow = keys_BK.astype(self._keys.dtype)
        is_equal = self._keys.take(starts[..., None] + self._window) == narrow[..., None]
        entries = starts + is_equal.argmax(axis=-1)
        is_found = self._keys.take(entries) == keys_BK
        found: NDArray[np.int32] = np.where(is_found, self._positions.take(entries), np.int32(-1))
        return found


def _buckets(keys: NDArray[np.int64], num_buckets: Any) -> NDArray[np.int64]:
    """Return the number of each key's bucket, from 0, among those of its vocabulary."""
    hashes = keys.view(np.uint64) * FACTORS[0]
    hashes ^= hashes >> SHIFT
    hashes *= FACTORS[1]
    hashes >>= HALF
    hashes *= num_buckets
    hashes >>= HALF
    return hashes.view(np.int64)


def _smallest_dtype(vocabularies: Sequence[NDArray[np.int64]]) -> np.dtype[Any]:
    """Return the smallest dtype of all keys."""
    lowest = min((int(keys.min()) for keys in vocabularies if len(keys)), default=0)
    highest = max((int(keys.max()) for keys in vocabularies if len(keys)), default=0)
    for dtype in (np.dtype(np.uint32), np.dtype(np.int32)):
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return dtype
    return np.dtype(np.int64)
