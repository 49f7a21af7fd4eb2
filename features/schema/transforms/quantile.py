"""The transform `quantile`."""

from typing import Annotated, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field

from features.schema.transforms.transform import Kind, Transform


class Quantile(Transform):
    """A number as a category: its bucket, of buckets with equal numbers of training rows.

    Bucket k contains edge_k <= x < edge_(k+1). Equal edges count once, so there may be fewer
    buckets than `buckets`. A missing value stays missing.

    Attributes:
        buckets: The number of buckets.
    """

    name: Literal["quantile"]
    buckets: Annotated[int, Field(ge=2, le=1_000_000)]
    takes: ClassVar = "dense"
    makes: ClassVar[Kind] = "categorical"

    def fitted_value(self, of: list[str]) -> pl.Expr:
        return pl.col(of[0]).cast(pl.Float64)

    def fit(self, counts: pl.DataFrame) -> pl.DataFrame:
        """Compute the exact edges, as a column `edge`."""
        counts = counts.rename({"value": "edge"})
        num_rows = int(counts["count"].sum())
        num_smaller = counts["count"].cum_sum() - counts["count"]
        # Edge k is the first value with at least k / buckets of the rows below it.
        ranks = np.ceil(np.arange(1, self.buckets) * (num_rows / self.buckets))
        positions = np.unique(np.searchsorted(num_smaller.to_numpy(), ranks, side="left"))
        is_value = positions < counts.height
        edges: pl.DataFrame = counts.select("edge")[positions[is_value].tolist()]
        return edges

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        assert fitted is not None
        edges = fitted["edge"].to_numpy()

        def bucket(values: pl.Series) -> pl.Series:
            buckets = np.searchsorted(edges, values.fill_null(0).to_numpy(), side="right")
            return pl.Series(values.name, buckets.astype(np.int32))

        column = pl.col(of[0]).cast(pl.Float64)
        return pl.when(column.is_not_null()).then(column.map_batches(bucket, pl.Int32))
