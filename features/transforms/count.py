"""A category as a number: ln(1 + how often its value stands in the training rows), 0 below min_count and where it is missing."""

from typing import ClassVar, Literal

import polars as pl

from features.params import Positive
from features.transforms.transform import Kind, Transform


class Count(Transform):
    name: Literal["count"]
    min_count: Positive
    takes: ClassVar = "categorical"
    makes: ClassVar[Kind] = "dense"

    def fit(self, rows: pl.LazyFrame, of: list[str]) -> pl.DataFrame:
        counts = rows.select(pl.col(of[0]).alias("value")).drop_nulls().group_by("value").agg(pl.len().alias("count"))
        return counts.filter(pl.col("count") >= self.min_count).collect(engine="streaming").sort("value")

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        assert fitted is not None
        logs = fitted["count"].cast(pl.Float64).log1p().cast(pl.Float32)
        return pl.col(of[0]).replace_strict(fitted["value"], logs, default=0, return_dtype=pl.Float32)
