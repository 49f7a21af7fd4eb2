"""The split of a day that belongs to two splits, where the schema names the column of the day."""

import numpy as np
import polars as pl

from features.encode.days import Day
from features.encode.split import SplitCodes, SplitOfDay
from features.schema.schema import DayColumn


def cut_by_time(split_of_day: SplitOfDay, days: list[Day], column: DayColumn) -> SplitOfDay:
    """Cut a day that belongs to two splits by the times of its rows, not by their order.

    Args:
        split_of_day: The split of each row of a day, which cuts a day by the order of its rows.
        days: The days of the log.
        column: The column of the times.
    """
    codes_of_cut_days: dict[int, SplitCodes] = {}  # two days at most

    def cut(k: int) -> SplitCodes:
        if k in codes_of_cut_days:
            return codes_of_cut_days[k]
        codes = split_of_day(k)
        if not len(codes) or codes[0] == codes[-1]:
            return codes
        codes_of_cut_days[k] = np.empty_like(codes)
        order = times_of(days[k], column).to_physical().to_numpy().argsort(kind="stable")
        codes_of_cut_days[k][order] = codes
        return codes_of_cut_days[k]

    return cut


def times_of(day: Day, column: DayColumn) -> pl.Series:
    """Return the time of each row of a day."""
    return day.all_rows().select(column.column).collect().to_series()
