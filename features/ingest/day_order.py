"""The rows of a shard in the order of their days, where the schema names the column of the day.

A log may be newest first, or have its rows in any order. The rows of each piece are sorted by day
when they are written. If the days of the whole shard are then not in order, the shard is written a
second time, day by day. The rows of one day keep the order of the file.
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from common.parquet import ParquetWriter
from features.schema.schema import DayColumn


def day_of_row(days: DayColumn) -> pl.Expr:
    """Return the date of each row, in the time zone of the days."""
    time = pl.col(days.column).dt.replace_time_zone("UTC")
    return time.dt.convert_time_zone(days.zone).dt.date().alias("day")


class DayOrder:
    """The days of the rows that are written to a shard.

    Args:
        days: The column that gives the day of a row; it has no null.
    """

    def __init__(self, days: DayColumn) -> None:
        self.days = days
        # Consecutive rows of one day: the day, and the number of rows.
        self.runs: list[tuple[date, int]] = []

    def add(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Sort the next rows of the shard by day, and remember their days.

        Args:
            rows: Typed rows.

        Returns:
            The same rows; those of one day keep their order.
        """
        if rows.is_empty():
            return rows
        day = rows.select(day_of_row(self.days)).to_series()
        if not day.is_sorted():
            order = day.to_physical().to_numpy().argsort(kind="stable")
            rows, day = rows[order], day[order]
        runs = day.rle().struct.unnest()
        self.runs += zip(runs["value"].to_list(), runs["len"].to_list(), strict=True)
        return rows

    @property
    def is_sorted(self) -> bool:
        """Whether the rows were added in the order of their days."""
        days = [day for day, _ in self.runs]
        return days == sorted(days)

    def rows_by_day(self) -> dict[str, int]:
        """Return the number of rows of each day, by its date like 2026-01-31, in time order."""
        num_rows: dict[date, int] = {}
        for day, length in self.runs:
            num_rows[day] = num_rows.get(day, 0) + length
        return {day.isoformat(): num_rows[day] for day in sorted(num_rows)}

    def rewrite(self, shard: Path, target: Path, row_group_rows: int) -> None:
        """Write the rows of a shard in the order of their days.

        One row group of the shard is in memory at a time. It is read once for each of its days.

        Args:
            shard: The file that the added rows were written to.
            target: The file to write.
            row_group_rows: The number of rows of a row group.
        """
        with pq.ParquetFile(shard, pre_buffer=False) as file:
            dtypes = pl.DataFrame(file.schema_arrow.empty_table()).schema
            starts = [0]
            for group in range(file.num_row_groups):
                starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
            with ParquetWriter(target, dtypes, row_group_rows) as writer:
                for day in sorted({day for day, _ in self.runs}):
                    stretches = list(self._stretches_of(day))
                    for group, start in enumerate(starts[:-1]):
                        in_group = [
                            (max(first, start) - start, min(end, starts[group + 1]) - start)
                            for first, end in stretches
                            if first < starts[group + 1] and end > start
                        ]
                        if in_group:
                            rows = pl.DataFrame(file.read_row_group(group))
                            for first, end in in_group:
                                writer.write(rows[first:end])

    def _stretches_of(self, day: date) -> Iterator[tuple[int, int]]:
        """Yield the first row, and the row after the last one, of each run of a day."""
        start = 0
        for other, length in self.runs:
            if other == day:
                yield start, start + length
            start += length
