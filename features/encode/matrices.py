"""The inputs of a model as matrices, from encoded rows.

Shapes: B rows, N dense features, F categorical features with one value.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.schema.schema import Schema


def dense_matrix(rows: pl.DataFrame, schema: Schema) -> NDArray[np.float32]:
    """Return the dense features (B, N), contiguous."""
    return _matrix(rows, schema.dense_features, np.float32)


def id_matrix(rows: pl.DataFrame, schema: Schema) -> NDArray[np.int32]:
    """Return the ids of the categorical features with one value (B, F), contiguous."""
    return _matrix(rows, schema.single_valued_features, np.int32)


def _matrix(rows: pl.DataFrame, names: Sequence[str], dtype: type[np.generic]) -> NDArray[Any]:
    if not names:  # a frame without columns has no rows
        return np.empty((rows.height, 0), dtype)
    return rows.select(names).to_numpy(order="c").astype(dtype, copy=False)
