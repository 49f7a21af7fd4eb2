"""Counting the values of an embedding table, exactly and in bounded memory.

They are the values of one feature, or of the features that share the table. Each value of a list
counts.

Counts are a frame of two columns, `value` without nulls and `count` (u64), sorted by value. The
counts of a vocabulary that grows have a third one, `last_day` (u32): the last day that had the
value, as an index into the days that were counted.
"""

from itertools import count

import numpy as np
import polars as pl

from features.hash_tables import count_integers
from features.list_values import values_of

CHUNK_ROWS = 1 << 24  # rows that are sorted together
CHUNK_LISTS = 1 << 19  # lists whose values are sorted together
DAY = "\0day"  # no column of a log has a control character in its name


def count_values(rows: pl.LazyFrame, *values: pl.Expr) -> pl.DataFrame:
    """Count the values of a table.

    The memory that it takes depends on the number of distinct values, not on that of rows.

    Args:
        rows: Typed rows.
        values: The value of each feature of the table in each row, or the list of its values; null
            where it is missing.

    Returns:
        The columns `value` and `count`, sorted by value, without null.
    """
    if len(values) > 1:
        return add_counts([count_values(rows, value) for value in values])
    column = rows.select(values[0].alias("value"))
    dtype = column.collect_schema()["value"]
    has_lists = isinstance(dtype, pl.List)
    if not (dtype.inner if has_lists else dtype).is_integer():  # type: ignore[attr-defined]
        return (
            (column.explode("value") if has_lists else column)
            .drop_nulls()
            .group_by("value")
            .agg(pl.len().cast(pl.UInt64).alias("count"))
            .collect(engine="streaming")
            .sort("value")
        )
    chunk_rows = CHUNK_LISTS if has_lists else CHUNK_ROWS
    counts_of_chunks = []
    for start in count(0, chunk_rows):
        chunk = column.slice(start, chunk_rows).collect()["value"]
        present = (values_of(chunk) if has_lists else chunk).drop_nulls()
        counts_of_chunks.append(_count_integers(present))
        if len(chunk) < chunk_rows:
            break
    return add_counts(counts_of_chunks)


def count_values_by_day(rows: pl.DataFrame, *values: pl.Expr) -> pl.DataFrame:
    """Count the values of a table on each of several days.

    Args:
        rows: Typed rows, with the column DAY (u32).
        values: The value of each feature of the table in each row, or the list of its values; null
            where it is missing.

    Returns:
        The columns `value`, `day` (u32) and `count` (u64), sorted by value and day, without null
        values.
    """
    of_features = []
    for value in values:
        of_feature = rows.select(value.alias("value"), pl.col(DAY).alias("day"))
        has_lists = isinstance(of_feature.schema["value"], pl.List)
        of_features.append(of_feature.explode("value") if has_lists else of_feature)
    of_day = pl.concat(of_features).drop_nulls("value")
    counts = of_day.group_by("value", "day").agg(pl.len().cast(pl.UInt64).alias("count"))
    return counts.sort("value", "day")


def as_one_day(counts: pl.DataFrame) -> pl.DataFrame:
    """Return the counts of one day in the form of `count_values_by_day`."""
    return counts.select("value", pl.lit(0, pl.UInt32).alias("day"), "count")


def counts_of_days(by_day: pl.DataFrame, day_indices: list[int]) -> pl.DataFrame:
    """Add up the counts of several days.

    Args:
        by_day: The result of `count_values_by_day`.
        day_indices: The index of each day in the days that were counted.

    Returns:
        The columns `value`, `count` and `last_day`, sorted by value.
    """
    if len(day_indices) == 1:
        return by_day.select("value", "count", pl.lit(day_indices[0], pl.UInt32).alias("last_day"))
    index_of_day = pl.Series(day_indices, dtype=pl.UInt32)
    return (
        by_day.with_columns(last_day=index_of_day.gather(by_day["day"]))
        .group_by("value", maintain_order=True)
        .agg(pl.col("count").sum(), pl.col("last_day").max())
    )


def _count_integers(values: pl.Series) -> pl.DataFrame:
    counted = count_integers(values.to_numpy())
    if counted:
        distinct, rows = counted
        return pl.DataFrame({"value": pl.Series(distinct, dtype=values.dtype), "count": rows})
    # Sorting takes half the time of Polars' hash table.
    sorted_N = np.sort(values.to_numpy())
    changes = np.flatnonzero(sorted_N[1:] != sorted_N[:-1]) + 1
    starts = np.insert(changes, 0, 0) if len(sorted_N) else changes
    counts = np.diff(starts, append=len(sorted_N)).astype(np.uint64)
    return pl.DataFrame({"value": pl.Series(sorted_N[starts], dtype=values.dtype), "count": counts})


def add_counts(all_counts: list[pl.DataFrame]) -> pl.DataFrame:
    """Add up the counts of several sets of rows; of any other column, the highest number counts.

    Args:
        all_counts: Counts with the same columns, each sorted by value.

    Returns:
        The counts of all rows together, sorted by value.
    """
    if not all_counts[0]["value"].dtype.is_integer():
        by_value = pl.concat(all_counts).group_by("value")
        return by_value.agg(pl.col("count").sum(), pl.all().exclude("count").max()).sort("value")
    # Merged in pairs, then in pairs of pairs, so that a value is copied log2(n) times, not n times.
    while len(all_counts) > 1:
        merged = [
            _merge(left, right)
            for left, right in zip(all_counts[0::2], all_counts[1::2], strict=False)
        ]
        if len(all_counts) % 2:
            merged.append(all_counts[-1])
        all_counts = merged
    return all_counts[0]


def _merge(left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
    """Add up two sets of counts of integers. The cost is that of copying the longer one."""
    long, short = (left, right) if len(left) >= len(right) else (right, left)
    long_values, short_values = long["value"].to_numpy(), short["value"].to_numpy()
    places = np.searchsorted(long_values, short_values)
    in_both = places < len(long_values)
    in_both[in_both] = long_values[places[in_both]] == short_values[in_both]
    merged = {}
    for name in long.columns:
        column, addition = long[name].to_numpy().copy(), short[name].to_numpy()
        if name == "count":
            column[places[in_both]] += addition[in_both]
        elif name != "value":
            column[places[in_both]] = np.maximum(column[places[in_both]], addition[in_both])
        column = np.insert(column, places[~in_both], addition[~in_both])
        merged[name] = pl.Series(column, dtype=long.schema[name])
    return pl.DataFrame(merged)
