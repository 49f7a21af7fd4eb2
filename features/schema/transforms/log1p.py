"""ln(1 + max(x, 0)) in float32, a missing value is 0: what the DLRM paper's code does to Criteo's counts."""

from typing import ClassVar, Literal

import numpy as np
import polars as pl

from features.schema.transforms.transform import Kind, Transform


class Log1p(Transform):
    name: Literal["log1p"]
    takes: ClassVar = "dense"
    makes: ClassVar[Kind] = "dense"

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        return (
            pl.col(of[0])
            .cast(pl.Float32)
            .fill_null(0)
            .clip(lower_bound=0)
            .map_batches(_log1, pl.Float32)
        )


def _log1(values: pl.Series) -> pl.Series:
    """ln(1 + x) in float32; NumPy's is ten times as fast as Polars' log1p."""
    return pl.Series(values.name, np.log(values.to_numpy() + np.float32(1)))
