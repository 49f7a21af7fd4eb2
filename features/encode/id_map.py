"""The lookup of the ids of values. feature_state.py defines the ids, vocabulary.py their order."""

from copy import copy
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.hash_tables import IdTable, make_id_table


class IdMap:
    """The ids of the values of one categorical feature.

    Integers are looked up in a hash table that is built once for each vocabulary (hash_tables.py).
    Polars' `replace_strict`, which texts use, builds a table for each call.

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

    def truncated(self, num_values: int) -> Self:
        """Return the map in which only the first `num_values` values have ids of their own.

        Both maps share one table.
        """
        first = copy(self)
        first.num_values = num_values
        return first

    def ids_of(self, column: pl.Series) -> pl.Series:
        """Return the id of each value.

        Args:
            column: B values of the same dtype as the vocabulary.

        Returns:
            Ids (B,), int32.
        """
        if self.table is None:
            return self._ids_of_texts(column)
        if not column.has_nulls():
            return pl.Series(column.name, self._ids_of_integers(column.to_numpy()))
        # Of few values, Arrow replaces the nulls in a tenth of the time that Polars takes.
        values = column.to_arrow()
        ids = self._ids_of_integers(values.fill_null(0).to_numpy(zero_copy_only=False))
        ids[values.is_null().to_numpy(zero_copy_only=False)] = self.missing_id
        return pl.Series(column.name, ids)

    def _ids_of_integers(self, values_B: NDArray[Any]) -> NDArray[np.int32]:
        assert self.table is not None
        return self.table.ids_of(values_B, self.num_values, self.first_id, self.unseen_id)

    def _ids_of_texts(self, column: pl.Series) -> pl.Series:
        values = self.values[: self.num_values]
        null_and_values = values.clear(1).append(values)
        ids_of_values = pl.int_range(
            self.first_id, self.first_id + len(values), dtype=pl.Int32, eager=True
        )
        ids = pl.Series([self.missing_id], dtype=pl.Int32).append(ids_of_values)
        return column.replace_strict(
            null_and_values, ids, default=self.unseen_id, return_dtype=pl.Int32
        )
