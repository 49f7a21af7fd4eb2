"""The transform `log1p`."""

from typing import ClassVar, Literal

import numpy as np
import polars as pl

from features.schema.transforms.transform import MAX_FLOAT32, Kind, Transform


class Log1p(Transform):
    """ln(1 + max(x, 0)); a missing value is 0. The DLRM paper's code does so to Criteo's counts.

    A value above the largest float32 counts as that one.
    """

    name: Literal["log1p"]
    takes: ClassVar = "dense"
    makes: ClassVar[Kind] = "dense"

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        return (
            pl.col(of[0])
            .cast(pl.Float32)
            .fill_null(0)
            .clip(0, MAX_FLOAT32)
            .map_batches(_log_of_one_plus, pl.Float32)
        )


def _log_of_one_plus(values: pl.Series) -> pl.Series:
    """Compute ln(1 + x) in float32 with NumPy, which is ten times as fast as Polars' log1p."""
    return pl.Series(values.name, np.log(values.to_numpy() + np.float32(1)))
