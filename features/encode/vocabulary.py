"""Vocabularies: which values of a categorical feature get an id of their own, and in which order.

Orders are functions of counts and values alone (or of the row order, by appearance), never of threads or shards.
"""

from itertools import count

import numpy as np
import polars as pl

CHUNK_ROWS = 1 << 24  # sorted together


def count_values(rows: pl.LazyFrame, value: pl.Expr) -> pl.DataFrame:
    """Columns value and count (u64), without nulls, by value. Memory is bounded by the distinct values, not by the rows."""
    column = rows.select(value.alias("value"))
    if not column.collect_schema()["value"].is_integer():
        return (
            column.drop_nulls()
            .group_by("value")
            .agg(pl.len().cast(pl.UInt64).alias("count"))
            .collect(engine="streaming")
            .sort("value")
        )
    parts = []
    for start in count(0, CHUNK_ROWS):
        chunk = column.slice(start, CHUNK_ROWS).collect()["value"]
        parts.append(_count_integers(chunk.drop_nulls()))
        if len(chunk) < CHUNK_ROWS:
            return add_counts(parts)
    raise AssertionError


def _count_integers(values: pl.Series) -> pl.DataFrame:
    """Sorting them and looking for the steps takes half the time of a hash table."""
    sorted_N = np.sort(values.to_numpy())
    steps = np.flatnonzero(sorted_N[1:] != sorted_N[:-1]) + 1
    starts = np.insert(steps, 0, 0) if len(sorted_N) else steps
    counts = np.diff(starts, append=len(sorted_N)).astype(np.uint64)
    return pl.DataFrame({"value": pl.Series(sorted_N[starts], dtype=values.dtype), "count": counts})


def add_counts(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Counts of several sets of rows as one, by value; of any other column the highest number. Each part is in the order of its values."""
    if not parts[0]["value"].dtype.is_integer():
        together = pl.concat(parts).group_by("value")
        return together.agg(pl.col("count").sum(), pl.all().exclude("count").max()).sort("value")
    while (
        len(parts) > 1
    ):  # neighbours, then neighbours of these: each value is moved log2(parts) times
        parts = [
            _merge(*parts[k : k + 2]) if k + 1 < len(parts) else parts[k]
            for k in range(0, len(parts), 2)
        ]
    return parts[0]


def _merge(long: pl.DataFrame, short: pl.DataFrame) -> pl.DataFrame:
    """Two sorted lists of distinct integers; the cost is that of copying the long one."""
    if len(long) < len(short):
        long, short = short, long
    values, more = long["value"].to_numpy(), short["value"].to_numpy()
    places = np.searchsorted(values, more)
    known = places < len(values)
    known[known] = values[places[known]] == more[known]
    merged = {}
    for name in long.columns:
        ours, theirs = long[name].to_numpy().copy(), short[name].to_numpy()
        if name == "count":
            ours[places[known]] += theirs[known]
        elif name != "value":
            ours[places[known]] = np.maximum(ours[places[known]], theirs[known])
        merged[name] = pl.Series(
            np.insert(ours, places[~known], theirs[~known]), dtype=long.schema[name]
        )
    return pl.DataFrame(merged)


def frequent_values(counts: pl.DataFrame, min_count: int) -> pl.Series:
    """The values counted at least min_count times, by (-count, value)."""
    return counts.filter(pl.col("count") >= min_count).sort(
        ["count", "value"], descending=[True, False]
    )["value"]


def values_by_appearance(
    rows: pl.LazyFrame, value: pl.Expr, null_is: str | int, min_count: int
) -> tuple[pl.Series, int]:
    """The values in the order of their first row, and how many there are with the rarer ones; a null counts as null_is."""
    found = (
        rows.select(value.fill_null(null_is).alias("value"))
        .with_row_index("first")
        .group_by("value")
    )
    counts = found.agg(pl.len().alias("count"), pl.col("first").min()).collect(engine="streaming")
    return counts.filter(pl.col("count") >= min_count).sort("first")["value"], counts.height
