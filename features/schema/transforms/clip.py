"""The transform `clip`."""

from typing import ClassVar, Literal

import polars as pl

from features.schema.transforms.transform import Kind, Transform


class Clip(Transform):
    """The value itself, limited to [low, high]; a missing value is 0, limited as well.

    Attributes:
        low: The lowest value.
        high: The highest value.
    """

    name: Literal["clip"]
    low: float
    high: float
    takes: ClassVar = "dense"
    makes: ClassVar[Kind] = "dense"

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        return pl.col(of[0]).fill_null(0).clip(self.low, self.high).cast(pl.Float32)
