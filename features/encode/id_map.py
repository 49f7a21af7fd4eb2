"""The lookup of the ids of values. feature_state.py defines the ids, vocabulary.py their order."""

from copy import copy
from typing import Any, Self

import numpy as np
import polars as pl
import polars_hash  # noqa: F401  (adds the namespace nchash to expressions)
from numpy.typing import NDArray

from features.hash_tables import IdTable, make_id_table
from features.null_values import fill_nulls


class IdMap:
    """The ids of the values of one categorical feature.

    Integers, and the hashes of texts, are looked up in a hash table that is built once for each
    vocabulary (hash_tables.py). Polars' `replace_strict` builds a table for each call. It is used
    for values of other types, and where two texts of the vocabulary have the same hash.

    Args:
        values: The vocabulary, distinct integers or texts without null. Value k has the id
            `first_id + k`.
        first_id: The id of the first value.
        missing_id: The id of null.
        unseen_id: The id of all other values.
    """

    def __init__(
        self, values: pl.Series, *, first_id: int, missing_id: int, unseen_id: int
    ) -> None:
        self.values = values
        self.num_values = len(values)  # the values after these are unseen
        self.first_id, self.missing_id, self.unseen_id = first_id, missing_id, unseen_id
        self.table: IdTable | None = None
        if values.dtype.is_integer() and len(values):
            self.table = make_id_table(values.to_numpy())
        elif values.dtype == pl.String and len(values):
            hashes_V = _hashes(values)
            if len(np.unique(hashes_V)) == len(values):
                self.table = make_id_table(hashes_V)

    def truncated(self, num_values: int) -> Self:
        """Return the map in which only the first `num_values` values have ids of their own.

        Both maps share one table.
        """
        first = copy(self)
        first.num_values = num_values
        return first

    def ids_of(self, column: pl.Series, known_B: NDArray[np.int32] | None = None) -> pl.Series:
        """Return the id of each value.

        Args:
            column: B values of the same dtype as the vocabulary.
            known_B: How many first values of the vocabulary are known to each of them; the others
                are unseen. None if all are known.

        Returns:
            Ids (B,), int32.
        """
        ids = self._ids_of(column)
        if known_B is None:
            return ids
        ids_B = ids.to_numpy()
        is_known_B = ids_B < self.first_id + known_B
        return pl.Series(column.name, np.where(is_known_B, ids_B, np.int32(self.unseen_id)))

    def _ids_of(self, column: pl.Series) -> pl.Series:
        if self.table is None:
            return self._replaced(column)
        if column.dtype == pl.String:
            return self._ids_of_texts(column, self.table)
        if not column.has_nulls():
            return pl.Series(column.name, self._ids_of_integers(column.to_numpy()))
        values_B, is_null_B = fill_nulls(column)
        ids = self._ids_of_integers(values_B)
        ids[is_null_B] = self.missing_id
        return pl.Series(column.name, ids)

    def _ids_of_integers(self, values_B: NDArray[Any]) -> NDArray[np.int32]:
        assert self.table is not None
        return self.table.ids_of(values_B, self.num_values, self.first_id, self.unseen_id)

    def _ids_of_texts(self, column: pl.Series, table: IdTable) -> pl.Series:
        positions_B = table.ids_of(_hashes(column), self.num_values, 0, -1)
        # An unseen text may have the hash of a known one.
        same_hash = self.values.gather(np.maximum(positions_B, 0))
        is_known_B = (positions_B >= 0) & same_hash.eq_missing(column).to_numpy()
        ids = np.where(is_known_B, self.first_id + positions_B, self.unseen_id).astype(np.int32)
        if column.has_nulls():
            ids[column.is_null().to_numpy()] = self.missing_id
        return pl.Series(column.name, ids)

    def _replaced(self, column: pl.Series) -> pl.Series:
        values = self.values[: self.num_values]
        null_and_values = values.clear(1).append(values)
        ids_of_values = pl.int_range(
            self.first_id, self.first_id + len(values), dtype=pl.Int32, eager=True
        )
        ids = pl.Series([self.missing_id], dtype=pl.Int32).append(ids_of_values)
        return column.replace_strict(
            null_and_values, ids, default=self.unseen_id, return_dtype=pl.Int32
        )


def _hashes(texts: pl.Series) -> NDArray[np.int64]:
    """Return a hash of each text (B,); 0 for null."""
    hashes = pl.col("text").nchash.xxhash64().fill_null(0)  # type: ignore[attr-defined]
    hashed: NDArray[np.int64] = texts.to_frame("text").select(hashes).to_series().to_numpy()
    return hashed.view(np.int64)
