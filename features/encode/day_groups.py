"""The groups of days whose values are counted together, because they have few rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.encode.days import Day
from features.encode.stretches import scan_stretches
from features.value_counts import DAY, as_one_day, count_values, count_values_by_day

# Days whose log files have at most SMALL_FILE_ROWS rows are read once and counted together: to open
# a file for each feature, or to count few rows, takes a time that does not depend on the number of
# rows. From about 12,000 rows of a file on it is faster to count a day alone.
SMALL_FILE_ROWS = 1 << 12
MAX_ROWS_IN_MEMORY = 1 << 18  # of days that are counted together


def has_small_files(day: Day) -> bool:
    """Whether the log files of a day have few rows, and so has the day."""
    return day.num_rows <= min(SMALL_FILE_ROWS * len(day.parts), MAX_ROWS_IN_MEMORY)


@dataclass(frozen=True)
class GroupOfDays:
    """Days that are counted together.

    Attributes:
        first_rows: The first row to count of each day, by the number of the day in the log.
    """

    first_rows: dict[int, int]

    def with_day(self, k: int, first_row: int) -> "GroupOfDays":
        """Return the group with one more day."""
        return GroupOfDays({**self.first_rows, k: first_row})

    def read(self, days: list[Day]) -> pl.DataFrame | None:
        """Read the rows, with one more column DAY; None for the only day of a group of large files.

        DAY (u32) is the place of the day in `first_rows`.
        """
        if not all(has_small_files(days[k]) for k in self.first_rows):
            return None
        stretches = (
            stretch
            for k, first in self.first_rows.items()
            for stretch in days[k].stretches(first, days[k].num_rows)
        )
        sizes = [days[k].num_rows - first for k, first in self.first_rows.items()]
        rows = scan_stretches(stretches).collect()
        return rows.with_columns(pl.Series(DAY, np.repeat(np.arange(len(sizes)), sizes), pl.UInt32))

    def count(
        self, days: list[Day], rows: pl.DataFrame | None, values: list[pl.Expr]
    ) -> pl.DataFrame:
        """Count the values of a table on each day.

        Args:
            days: All days of the log.
            rows: The result of `read`.
            values: The value of each feature of the table.

        Returns:
            The columns of `count_values_by_day`; `day` is the place of the day in `first_rows`.
        """
        if rows is not None:
            return count_values_by_day(rows, *values)
        ((k, first_row),) = self.first_rows.items()
        day = days[k]
        return as_one_day(count_values(day.rows(first_row, day.num_rows), *values))


@dataclass(frozen=True)
class NewDays:
    """Days by which the vocabularies grow.

    Attributes:
        groups: The days, in their order.
        indices: The index of each day in the days that were counted, by its number in the log.
        num_counted: The number of days that were counted, these included.
    """

    groups: list[GroupOfDays]
    indices: dict[int, int]
    num_counted: int

    def __len__(self) -> int:
        return len(self.indices)

    def indices_of(self, group: GroupOfDays) -> list[int]:
        """Return the index of each day of a group."""
        return [self.indices[k] for k in group.first_rows]


def group_days(days: list[Day], first_rows: dict[int, int]) -> Iterator[list[GroupOfDays]]:
    """Yield the groups of days whose rows are in memory at the same time.

    Args:
        days: All days of the log.
        first_rows: The first row to count of each day, by the number of the day.
    """
    groups: list[GroupOfDays] = []
    rows_in_memory, follows_small_day = 0, False
    for k, first_row in first_rows.items():
        num_rows = days[k].num_rows - first_row
        is_small = has_small_files(days[k])
        rows_in_memory += num_rows if is_small else 0
        if rows_in_memory > MAX_ROWS_IN_MEMORY:
            yield groups
            groups, rows_in_memory, follows_small_day = [], num_rows, False
        if is_small and follows_small_day:
            groups[-1] = groups[-1].with_day(k, first_row)
        else:
            groups.append(GroupOfDays({k: first_row}))
        follows_small_day = is_small
    if groups:
        yield groups
