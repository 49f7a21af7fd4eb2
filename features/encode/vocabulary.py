"""The rules that say which values are in the vocabulary of a categorical feature, and their order.

The functions are pure. An order depends on the counts and the values only (or on the order of the
rows, in the layout `appearance`), never on threads, or on how the rows are cut into shards.

Counts are the frames of `features/value_counts.py`.
"""

import polars as pl


def frequent_values(counts: pl.DataFrame, min_count: int) -> pl.Series:
    """Return the values that occur at least `min_count` times, in the order (-count, value)."""
    frequent = counts.filter(pl.col("count") >= min_count)
    return frequent.sort(["count", "value"], descending=[True, False])["value"]


def grow_vocabulary(values: pl.Series, counts: pl.DataFrame, min_count: int) -> pl.Series:
    """Append the values that have become frequent to a vocabulary.

    Args:
        values: The vocabulary so far; it is a prefix of the result.
        counts: The counts of all rows so far, the new rows included.
        min_count: The number of occurrences that makes a value frequent.
    """
    known = values.to_frame("value")
    new = counts.filter(pl.col("count") >= min_count).join(known, on="value", how="anti")
    return pl.concat([values, frequent_values(new, min_count)])


def grow_by_days(
    values: pl.Series, counts: pl.DataFrame, days: pl.DataFrame, min_count: int, num_days: int
) -> tuple[pl.Series, list[int]]:
    """Grow a vocabulary by several days at once, as `grow_vocabulary` does day by day.

    Args:
        values: The vocabulary so far.
        counts: The counts of all rows so far, without these days.
        days: The columns `value`, `day` (u32, from 0) and `count` (u64), sorted by the first two.
        min_count: The number of occurrences that makes a value frequent.
        num_days: The number of days.

    Returns:
        The vocabulary, and the number of its values after each day.
    """
    before = counts.select("value", pl.col("count").alias("before"))
    so_far = days.join(before, on="value", how="left", maintain_order="left").select(
        "value",
        "day",
        "count",
        total=pl.col("before").fill_null(0) + pl.col("count").cum_sum().over("value"),
    )
    becomes_frequent = pl.col("total").is_between(
        min_count, min_count - 1 + pl.col("count"), closed="both"
    )
    new = so_far.filter(becomes_frequent).sort(
        ["day", "total", "value"], descending=[False, True, False]
    )
    num_new = new["day"].to_numpy().searchsorted(range(num_days), side="right")
    return pl.concat([values, new["value"]]), (len(values) + num_new).tolist()


def forget_values(
    values: pl.Series, counts: pl.DataFrame, first_day: int
) -> tuple[pl.Series, pl.DataFrame]:
    """Remove the values that did not occur on any counted day from `first_day` on.

    Args:
        values: The vocabulary.
        counts: Its counts, with the column `last_day`.
        first_day: An index into the days that were counted.

    Returns:
        The values that remain, in the same order, and the counts without the others.
    """
    recent = counts.filter(pl.col("last_day") >= first_day)
    return values.filter(values.is_in(recent["value"].implode())), recent


def values_by_appearance(
    rows: pl.LazyFrame, value: pl.Expr, null_value: str | int, min_count: int
) -> tuple[pl.Series, int]:
    """Return the frequent values in the order of their first row.

    Args:
        rows: Typed rows.
        value: The value of the feature in each row.
        null_value: The value that a null counts as.
        min_count: The number of occurrences that makes a value frequent.

    Returns:
        The values, and the number of distinct values, rare ones included.
    """
    by_value = (
        rows.select(value.fill_null(null_value).alias("value"))
        .with_row_index("first")
        .group_by("value")
    )
    counts = by_value.agg(pl.len().alias("count"), pl.col("first").min()).collect(
        engine="streaming"
    )
    return counts.filter(pl.col("count") >= min_count).sort("first")["value"], counts.height
