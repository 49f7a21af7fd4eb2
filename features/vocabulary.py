"""Vocabularies: which values of a categorical column get an id of their own, and in which order."""

from dataclasses import dataclass

import polars as pl

from features.state import NULL_VALUE, Layout


@dataclass(frozen=True)
class Vocabulary:
    """values in id order; num_distinct counts those too rare for an id as well."""

    values: pl.Series
    num_distinct: int


def fit_vocabulary(rows: pl.LazyFrame, name: str, ids: Layout, min_count: int) -> Vocabulary:
    """Count one column's values. Only that column is read, and memory is bounded by its distinct values, not by its rows.

    The order is a function of the counts and the values alone (or of the row order, by appearance), never of threads or shards.
    """
    value = pl.col(name).alias("value")
    if ids == "appearance":
        first = (
            rows.select(value.fill_null(NULL_VALUE))
            .with_row_index("first")
            .group_by("value")
            .agg(pl.len().alias("count"), pl.col("first").min())
        )
        counts, order, descending = first, ["first"], [False]
    else:
        counts = rows.select(value).drop_nulls().group_by("value").agg(pl.len().alias("count"))
        order, descending = ["count", "value"], [True, False]
    counted = counts.collect(engine="streaming")
    values = counted.filter(pl.col("count") >= min_count).sort(order, descending=descending)["value"]
    return Vocabulary(values, counted.height)
