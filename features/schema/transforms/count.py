"""The transform `count`."""

from typing import ClassVar, Literal

import polars as pl

from common.config.base import Positive
from features.schema.transforms.transform import Kind, Transform


class Count(Transform):
    """A category as a number: ln(1 + n), where n is how often it occurs in the training rows.

    A missing value, and a value that occurs less than `min_count` times, is 0.

    Attributes:
        min_count: The lowest count that is used.
    """

    name: Literal["count"]
    min_count: Positive
    takes: ClassVar = "categorical"
    makes: ClassVar[Kind] = "dense"

    def fitted_value(self, of: list[str]) -> pl.Expr:
        return pl.col(of[0])

    def fit(self, counts: pl.DataFrame) -> pl.DataFrame:
        """Keep the counts that are used: the columns `value` and `count`."""
        return counts.filter(pl.col("count") >= self.min_count)

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        assert fitted is not None
        logs = fitted["count"].cast(pl.Float64).log1p().cast(pl.Float32)
        return pl.col(of[0]).replace_strict(
            fitted["value"], logs, default=0, return_dtype=pl.Float32
        )
