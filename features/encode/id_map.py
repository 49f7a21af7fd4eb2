"""The lookup of the ids of values. feature_state.py defines the ids, vocabulary.py their order."""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd


class IdMap:
    """The ids of the values of one categorical feature.

    Integers are looked up in the hash table of a `pandas.Index`, which is built once for each
    vocabulary. Polars' `replace_strict`, which texts use, builds a table for each call.

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
        self.first_id, self.missing_id, self.unseen_id = first_id, missing_id, unseen_id
        self.index: pd.Index | None = None
        if values.dtype.is_integer() and len(values):
            self.index = _index_of(values.to_numpy())

    def ids_of(self, column: pl.Series) -> pl.Series:
        """Return the id of each value.

        Args:
            column: B values of the same dtype as the vocabulary.

        Returns:
            Ids (B,), int32.
        """
        if self.index is None:
            return self._ids_of_texts(column)
        positions = self.index.get_indexer(column.fill_null(0).to_numpy()).astype(np.int32)
        ids = positions + np.int32(self.first_id)
        ids[positions < 0] = self.unseen_id
        if column.has_nulls():
            ids[column.is_null().to_numpy()] = self.missing_id
        return pl.Series(column.name, ids)

    def _ids_of_texts(self, column: pl.Series) -> pl.Series:
        null_and_values = self.values.clear(1).append(self.values)
        ids_of_values = pl.int_range(
            self.first_id, self.first_id + len(self.values), dtype=pl.Int32, eager=True
        )
        ids = pl.Series([self.missing_id], dtype=pl.Int32).append(ids_of_values)
        return column.replace_strict(
            null_and_values, ids, default=self.unseen_id, return_dtype=pl.Int32
        )


def _index_of(values: NDArray[Any]) -> "pd.Index":
    """Return an index of distinct integers, with its hash table."""
    import pandas as pd  # here, because training does not look up ids, and need not wait for it

    index = pd.Index(values)
    # The first lookup builds the table. It is done here, because threads share the index later.
    # pandas needs no table for few values, or for exactly the values of the index, so one value
    # more is looked up.
    index.get_indexer(np.resize(values, len(values) + 1))
    return index
