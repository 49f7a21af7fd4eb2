"""A category as a number: ln(1 + how often its value stands in the training rows), 0 below min_count and where it is missing."""

from typing import ClassVar, Literal

import polars as pl

from common.config.base import Positive
from features.encode.vocabulary import count_values
from features.schema.transforms.transform import Kind, Transform


class Count(Transform):
    name: Literal["count"]
    min_count: Positive
    takes: ClassVar = "categorical"
    makes: ClassVar[Kind] = "dense"

    def fit(self, rows: pl.LazyFrame, of: list[str]) -> pl.DataFrame:
        return count_values(rows, pl.col(of[0])).filter(pl.col("count") >= self.min_count)

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        assert fitted is not None
        logs = fitted["count"].cast(pl.Float64).log1p().cast(pl.Float32)
        return pl.col(of[0]).replace_strict(
            fitted["value"], logs, default=0, return_dtype=pl.Float32
        )
