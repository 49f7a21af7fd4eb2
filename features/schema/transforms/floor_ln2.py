"""A number as a category, as the winners of the Kaggle contest and BARS have it: floor(ln(x)^2) above 2, else the integer part.

A missing value is 0, negative ones stay.
"""

from typing import ClassVar, Literal

import polars as pl

from features.schema.transforms.transform import Kind, Transform


class FloorLn2(Transform):
    name: Literal["floor_ln2"]
    takes: ClassVar = "dense"
    makes: ClassVar[Kind] = "categorical"

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        column = pl.col(of[0]).fill_null(0)
        return (
            pl.when(column > 2)
            .then(column.cast(pl.Float64).log().pow(2).floor())
            .otherwise(column)
            .cast(pl.Int32)
        )
