"""The transform `floor_ln2`."""

from typing import ClassVar, Literal

import polars as pl

from features.schema.transforms.transform import Kind, Transform

LOWEST = -(2**31)  # of an int32


class FloorLn2(Transform):
    """A number as a category: floor(ln(x)^2) for x > 2, else the integer part of x.

    A missing value is 0, and a value below -2^31 counts as that one. The winners of Kaggle's Criteo
    contest used it (https://github.com/ycjuan/kaggle-2014-criteo), and so does the BARS benchmark.
    """

    name: Literal["floor_ln2"]
    takes: ClassVar = "dense"
    makes: ClassVar[Kind] = "categorical"

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        column = pl.col(of[0]).fill_null(0)
        return (
            pl.when(column > 2)
            .then(column.cast(pl.Float64).log().pow(2).floor())
            .otherwise(column.clip(lower_bound=LOWEST))
            .cast(pl.Int32)
        )
