"""The rules that say which values are in the vocabulary of a categorical feature, and their order.

The functions are pure. An order depends on the counts and the values only (or on the order of the
rows, in the layout `appearance`), never on threads, or on how the rows are cut into shards.

Counts are the frames of `features/value_counts.py`.
"""

from collections.abc import Iterable

import polars as pl

from features.value_counts import add_counts, counts_of_days


def frequent_values(counts: pl.DataFrame, min_count: int) -> pl.Series:
    """Return the values that occur at least `min_count` times, in the order (-count, value)."""
    frequent = counts.filter(pl.col("count") >= min_count)
    return frequent.sort(["count", "value"], descending=[True, False])["value"]


def newly_frequent(before: pl.DataFrame, by_day: pl.DataFrame, min_count: int) -> pl.DataFrame:
    """Return the values that become frequent on some days, in the order of a vocabulary.

    Args:
        before: The counts of all earlier rows.
        by_day: The counts of these days, as of `features.value_counts.count_values_by_day`.
        min_count: The number of occurrences that makes a value frequent.

    Returns:
        The columns `value`, `day` (u32, the day on which it becomes frequent) and `total` (u64, its
        count up to the end of that day), sorted by (day, -total, value).
    """
    earlier = before.select("value", pl.col("count").alias("before"))
    # The rows of a value follow each other, so its running total is that of all rows without that
    # of the rows before its first one.
    is_first = pl.col("value") != pl.col("value").shift()
    total = pl.col("count").cum_sum()
    before_value = pl.when(is_first.fill_null(True)).then(total - pl.col("count")).forward_fill()
    so_far = by_day.join(earlier, on="value", how="left", maintain_order="left").with_columns(
        total=pl.col("before").fill_null(0) + total - before_value
    )
    becomes_frequent = pl.col("total").is_between(min_count, min_count - 1 + pl.col("count"))
    new = so_far.filter(becomes_frequent).select("value", "day", "total")
    return new.sort(["day", "total", "value"], descending=[False, True, False])


def grow_counts(
    counts: pl.DataFrame, groups: Iterable[tuple[pl.DataFrame, list[int]]], min_count: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Add the counts of later days to the counts of a table's values, group of days by group.

    Args:
        counts: The counts of all earlier rows, with the column `last_day`.
        groups: The counts of the days of each group, as of
            `features.value_counts.count_values_by_day`, and the index of each of these days in the
            days that were counted.
        min_count: The number of occurrences that makes a value frequent.

    Returns:
        What `newly_frequent` returns, with the days of all groups numbered through; and the counts
        of all rows.
    """
    of_groups, num_days = [], 0
    for by_day, day_indices in groups:
        new = newly_frequent(counts, by_day, min_count)
        of_groups.append(new.with_columns(pl.col("day") + num_days))
        counts = add_counts([counts, counts_of_days(by_day, day_indices)])
        num_days += len(day_indices)
    return pl.concat(of_groups), counts


def sizes_after_days(new: pl.DataFrame, num_before: int, num_days: int) -> list[int]:
    """Return the number of values of a vocabulary after each of some days.

    Args:
        new: The values that it grew by, as of `grow_counts`.
        num_before: The number of its values before the first day.
        num_days: The number of days.
    """
    num_new = new["day"].to_numpy().searchsorted(range(num_days), side="right")
    return (num_before + num_new).tolist()  # type: ignore[no-any-return]


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
