"""Where a categorical value gets its id."""

import numpy as np
import pandas as pd
import polars as pl


class IdMap:
    """Maps the values of one categorical feature to ids.

    Integers are looked up in the hash table of a `pandas.Index`, which is built once for each vocabulary.
    Polars' `replace_strict`, which texts use, builds a table for each call.

    Args:
        values: The vocabulary, integers or texts without null; value k has the id first + k.
        first: The id of the first value.
        missing: The id of null.
        other: The id of a value that is not in the vocabulary.
    """

    def __init__(self, values: pl.Series, *, first: int, missing: int, other: int) -> None:
        self.values, self.first, self.missing, self.other = values, first, missing, other
        self.index: pd.Index | None = None
        if values.dtype.is_integer() and len(values):
            self.index = pd.Index(values.to_numpy())
            # This check builds the hash table, here and not in the threads that share it later.
            assert self.index.is_unique, "a vocabulary has each value once"

    def ids(self, column: pl.Series) -> pl.Series:
        """Return the int32 ids of a column, which has the dtype of the vocabulary."""
        if self.index is None:
            return self._ids_of_texts(column)
        positions = self.index.get_indexer(column.fill_null(0).to_numpy()).astype(np.int32)
        ids = positions + np.int32(self.first)
        ids[positions < 0] = self.other
        if column.has_nulls():
            ids[column.is_null().to_numpy()] = self.missing
        return pl.Series(column.name, ids)

    def _ids_of_texts(self, column: pl.Series) -> pl.Series:
        known = self.values.clear(1).append(self.values)  # null comes first
        numbers = pl.int_range(
            self.first, self.first + len(self.values), dtype=pl.Int32, eager=True
        )
        ids = pl.Series([self.missing], dtype=pl.Int32).append(numbers)
        return column.replace_strict(known, ids, default=self.other, return_dtype=pl.Int32)
