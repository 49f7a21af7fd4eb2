"""The values of columns of lists: taken out of the lists, and put back."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray


def lengths_of(lists: pl.Series) -> NDArray[np.int64]:
    """Return the number of values of each list (B,); 0 where the list is missing."""
    return lists.list.len().fill_null(0).to_numpy().astype(np.int64)


def values_of(lists: pl.Series) -> pl.Series:
    """Return the values of all lists, one list after the other; nulls in lists are values."""
    return lists.explode(empty_as_null=False, keep_nulls=False)


def lists_of(
    values: pl.Series, lengths: NDArray[np.int64], is_missing: NDArray[np.bool_] | None = None
) -> pl.Series:
    """Put values into lists.

    Args:
        values: The values of all lists (V,), one list after the other.
        lengths: The number of values of each list (B,).
        is_missing: Whether a list is null instead (B,); None if none is.
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    mask = None if is_missing is None else pa.array(is_missing)
    array = pa.LargeListArray.from_arrays(pa.array(offsets), values.to_arrow(), mask=mask)
    lists = pl.Series(values.name, array)
    return lists.cast(pl.List(values.dtype))


def map_values(lists: pl.Series, function: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """Apply a function to the values of all lists together; a missing list stays missing."""
    is_missing = lists.is_null().to_numpy() if lists.has_nulls() else None
    return lists_of(function(values_of(lists)), lengths_of(lists), is_missing)
