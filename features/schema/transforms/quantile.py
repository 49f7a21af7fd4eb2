"""A number as a category: which of so many buckets of equal counts in the training rows it falls into. A missing value stays missing."""

from typing import Annotated, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field

from features.encode.vocabulary import count_values
from features.schema.transforms.transform import Kind, Transform


class Quantile(Transform):
    """Bucket k holds edge_k <= x < edge_(k+1). Equal edges count once, so that there may be fewer buckets than asked for."""

    name: Literal["quantile"]
    buckets: Annotated[int, Field(ge=2)]
    takes: ClassVar = "dense"
    makes: ClassVar[Kind] = "categorical"

    def fit(self, rows: pl.LazyFrame, of: list[str]) -> pl.DataFrame:
        """Exact quantiles from the counts of distinct values: memory is bounded by these."""
        counts = count_values(rows, pl.col(of[0]).cast(pl.Float64)).rename({"value": "edge"})
        before = counts["count"].cum_sum() - counts["count"]  # rows with a smaller value
        rank = np.ceil(np.arange(1, self.buckets) * (int(counts["count"].sum()) / self.buckets))
        places = np.unique(np.searchsorted(before.to_numpy(), rank, side="left"))
        edges: pl.DataFrame = counts.select("edge")[places[places < counts.height].tolist()]
        return edges

    def expr(self, of: list[str], fitted: pl.DataFrame | None) -> pl.Expr:
        assert fitted is not None
        edges = fitted["edge"].to_numpy()

        def bucket(values: pl.Series) -> pl.Series:
            return pl.Series(
                values.name,
                np.searchsorted(edges, values.fill_null(0).to_numpy(), side="right").astype(
                    np.int32
                ),
            )

        column = pl.col(of[0]).cast(pl.Float64)
        return pl.when(column.is_not_null()).then(column.map_batches(bucket, pl.Int32))
