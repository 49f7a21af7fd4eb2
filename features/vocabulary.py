"""Vocabularies: which values of a categorical feature get an id of their own, and in which order.

Orders are functions of counts and values alone (or of the row order, by appearance), never of threads or shards.
"""

import polars as pl


def count_values(rows: pl.LazyFrame, value: pl.Expr) -> pl.DataFrame:
    """Columns value and count (u32), without nulls, in any order. Memory is bounded by the distinct values, not by the rows."""
    return rows.select(value.alias("value")).drop_nulls().group_by("value").agg(pl.len().alias("count")).collect(engine="streaming")


def frequent_values(counts: pl.DataFrame, min_count: int) -> pl.Series:
    """The values counted at least min_count times, by (-count, value)."""
    return counts.filter(pl.col("count") >= min_count).sort(["count", "value"], descending=[True, False])["value"]


def values_by_appearance(rows: pl.LazyFrame, value: pl.Expr, null_is: str | int, min_count: int) -> tuple[pl.Series, int]:
    """The values in the order of their first row, and how many there are with the rarer ones; a null counts as null_is."""
    found = rows.select(value.fill_null(null_is).alias("value")).with_row_index("first").group_by("value")
    counts = found.agg(pl.len().alias("count"), pl.col("first").min()).collect(engine="streaming")
    return counts.filter(pl.col("count") >= min_count).sort("first")["value"], counts.height
