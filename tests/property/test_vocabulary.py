"""A vocabulary that grows by several days at once is the one that grows day by day."""

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encode.vocabulary import frequent_values, grow_counts, sizes_after_days
from features.value_counts import (
    DAY,
    add_counts,
    as_one_day,
    count_values,
    count_values_by_day,
)

INTEGERS = st.lists(st.none() | st.integers(0, 6), max_size=12)
TEXTS = st.lists(st.none() | st.sampled_from(["", "a", "b", "ab", "ä", "Z"]), max_size=12)


def rows_of(values: list[int | str | None], dtype: pl.DataType) -> pl.LazyFrame:
    """Return rows with the column `x`."""
    return pl.LazyFrame({"x": values}, {"x": dtype})


@settings(deadline=None)
@given(
    days=st.lists(INTEGERS, min_size=3, max_size=6) | st.lists(TEXTS, min_size=3, max_size=6),
    min_count=st.integers(1, 5),
)
def test_growth_by_groups_of_days(days: list[list[int | str | None]], min_count: int) -> None:
    is_text = any(isinstance(value, str) for values in days for value in values)
    dtype = pl.String() if is_text else pl.Int64()
    first, *later = days
    counts = count_values(rows_of(first, dtype), pl.col("x")).with_columns(
        last_day=pl.lit(0, pl.UInt32)
    )
    values = frequent_values(counts, min_count)

    grown, counts_so_far, sizes = values.to_list(), counts, []
    for k, of_day in enumerate(later, start=1):
        counts_of_day = count_values(rows_of(of_day, dtype), pl.col("x"))
        counts_of_day = counts_of_day.with_columns(last_day=pl.lit(k, pl.UInt32))
        counts_so_far = add_counts([counts_so_far, counts_of_day])
        grown += [
            value for value in frequent_values(counts_so_far, min_count) if value not in grown
        ]
        sizes.append(len(grown))

    rows = pl.concat(
        [
            rows_of(of_day, dtype).collect().with_columns(pl.lit(k, pl.UInt32).alias(DAY))
            for k, of_day in enumerate(later)
        ]
    )
    by_day = count_values_by_day(rows, pl.col("x"))
    assert by_day.equals(by_day.sort("value", "day"))
    indices = list(range(1, len(days)))
    one_by_one = [
        (as_one_day(count_values(rows_of(of_day, dtype), pl.col("x"))), [k])
        for k, of_day in enumerate(later, start=1)
    ]
    for groups in ([(by_day, indices)], one_by_one):
        new, counts_at_end = grow_counts(counts, groups, min_count)
        assert [*values, *new["value"]] == grown
        assert sizes_after_days(new, len(values), len(later)) == sizes
        assert counts_at_end.equals(counts_so_far)
