"""The nulls of numeric columns, taken out or filled, as NumPy arrays.

For few values, Polars needs ten times as long as Arrow, because it starts a query. For many values
it is faster.
"""

from typing import Any

import polars as pl
from numpy.typing import NDArray

FEW_VALUES = 10_000


def present_values(column: pl.Series) -> NDArray[Any]:
    """Return the values that are not null."""
    if len(column) > FEW_VALUES:
        return column.drop_nulls().to_numpy()
    present: NDArray[Any] = column.to_arrow().drop_null().to_numpy(zero_copy_only=False)
    return present


def fill_nulls(column: pl.Series) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the values with 0 in place of nulls (B,), and whether each of them is null (B,)."""
    if len(column) > FEW_VALUES:
        return column.fill_null(0).to_numpy(), column.is_null().to_numpy()
    values = column.to_arrow()
    filled: NDArray[Any] = values.fill_null(0).to_numpy(zero_copy_only=False)
    return filled, values.is_null().to_numpy(zero_copy_only=False)
