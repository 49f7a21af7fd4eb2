"""The map from the values of a categorical feature to their ids.

The table is built once for each vocabulary, so a lookup costs nearly the same whatever the size of
the vocabulary. Integers are looked up in a hash table in NumPy. Polars' replace_strict, which builds
its table again for each batch, looks up texts, and integers whose range is wider than 32 bits.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

KEY_RANGE = 1 << 32
# 2^32 / golden ratio, for multiplicative hashing (Knuth, The Art of Computer Programming, vol. 3,
# section 6.4).
MULTIPLIER = np.uint32(2654435769)
# Up to this number of keys, a table has 8 slots for each key, so that few keys collide; above, it
# has 2 slots, so that the table stays in the processor's cache.
NUM_KEYS_OF_ROOMY_TABLE = 1 << 18
EMPTY = np.uint32(0xFFFFFFFF)


class IdMap:
    """The ids of the values of one categorical feature.

    Args:
        values: The vocabulary. Value k has the id `first_id + k`.
        first_id: The id of the first value.
        missing_id: The id of null.
        unseen_id: The id of all other values.
    """

    def __init__(
        self, values: pl.Series, *, first_id: int, missing_id: int, unseen_id: int
    ) -> None:
        self.values = values
        self.first_id, self.missing_id, self.unseen_id = first_id, missing_id, unseen_id
        self.lowest = 0
        self.table: HashTable | None = None
        if values.dtype.is_integer() and len(values):
            self.lowest, highest = int(values.min()), int(values.max())  # type: ignore[arg-type]
            if highest - self.lowest < KEY_RANGE:
                self.table = HashTable(self._keys(values)[0])

    def ids_of(self, column: pl.Series) -> pl.Series:
        """Return the id of each value.

        Args:
            column: B values of the same dtype as the vocabulary.

        Returns:
            Ids (B,), int32.
        """
        if self.table is None:
            return self._replace_strict(column)
        is_null = column.is_null().to_numpy() if column.has_nulls() else None
        keys, out_of_range = self._keys(column.fill_null(self.lowest))
        positions = self.table.positions(keys)
        ids = positions + np.int32(self.first_id)
        ids[positions < 0] = self.unseen_id
        if out_of_range is not None:
            ids[out_of_range] = self.unseen_id
        if is_null is not None:
            ids[is_null] = self.missing_id
        return pl.Series(column.name, ids)

    def _replace_strict(self, column: pl.Series) -> pl.Series:
        null_and_values = self.values.clear(1).append(self.values)
        ids_of_values = pl.int_range(
            self.first_id, self.first_id + len(self.values), dtype=pl.Int32, eager=True
        )
        ids = pl.Series([self.missing_id], dtype=pl.Int32).append(ids_of_values)
        return column.replace_strict(
            null_and_values, ids, default=self.unseen_id, return_dtype=pl.Int32
        )

    def _keys(self, column: pl.Series) -> tuple[NDArray[np.uint32], NDArray[np.bool_] | None]:
        """Return the distance of each value from the lowest value of the vocabulary, as u32.

        The second array marks the values whose distance does not fit; None if every distance fits.
        """
        values = column.to_numpy()
        if values.dtype == np.uint32:
            return values - np.uint32(self.lowest), None
        # A value below the lowest one wraps around to a large unsigned distance.
        lowest = np.array(self.lowest, np.int64).view(np.uint64)
        distances = values.astype(np.int64).view(np.uint64) - lowest
        return distances.astype(np.uint32), distances >= KEY_RANGE


class HashTable:
    """An open-addressing hash table with linear probing, for the positions of distinct keys.

    A slot is one 64-bit integer: the key in its upper half, and its position in the lower half.

    Args:
        keys: V distinct keys. Key k has the position k.
    """

    def __init__(self, keys: NDArray[np.uint32]) -> None:
        slots_per_key = 8 if len(keys) <= NUM_KEYS_OF_ROOMY_TABLE else 2
        num_slots = len(keys) * slots_per_key
        self.bits = max(4, (num_slots - 1).bit_length())
        position_in_slot = np.full(1 << self.bits, EMPTY)
        slots = self._first_slots(keys)
        unplaced = np.arange(len(keys), dtype=np.uint32)
        while len(unplaced):
            wanted = slots[unplaced]
            is_free = position_in_slot[wanted] == EMPTY
            # If several keys want the same slot, the last one that is written gets it.
            position_in_slot[wanted[is_free]] = unplaced[is_free]
            unplaced = unplaced[position_in_slot[wanted] != unplaced]
            slots[unplaced] = self._next_slots(slots[unplaced])
        key_in_slot = keys[np.where(position_in_slot == EMPTY, 0, position_in_slot)]
        self.slots = (key_in_slot.astype(np.uint64) << np.uint64(32)) | position_in_slot

    def positions(self, keys: NDArray[np.uint32]) -> NDArray[np.int32]:
        """Return the position of each key (B,), and -1 for unknown keys."""
        slots = self._first_slots(keys)
        keys_found, positions = self._read(slots)
        differs = keys_found != keys
        # An empty slot, with position -1, ends the search; another key's slot does not.
        open_searches = np.flatnonzero(differs & (positions >= 0))
        positions[differs] = -1
        slots, keys = slots[open_searches], keys[open_searches]
        while len(open_searches):
            slots = self._next_slots(slots)
            keys_found, positions_found = self._read(slots)
            matches = keys_found == keys
            positions[open_searches[matches]] = positions_found[matches]
            is_open = ~matches & (positions_found >= 0)
            open_searches, slots, keys = open_searches[is_open], slots[is_open], keys[is_open]
        return positions

    def _read(self, slots: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
        """Return the keys and the positions in some slots; an empty slot has the position -1."""
        content = self.slots[slots]
        keys = (content >> np.uint64(32)).astype(np.uint32)
        return keys, content.astype(np.uint32).view(np.int32)

    def _first_slots(self, keys: NDArray[np.uint32]) -> NDArray[np.uint32]:
        return (keys * MULTIPLIER) >> np.uint32(32 - self.bits)

    def _next_slots(self, slots: NDArray[np.uint32]) -> NDArray[np.uint32]:
        return (slots + np.uint32(1)) & np.uint32((1 << self.bits) - 1)
