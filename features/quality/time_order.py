"""The check that the days of a log are in time order, where the log has a column of times.

The last days become validation and test rows. In a log that is newest first, the model would be
trained on the future of the rows that it is tested on.
"""

from itertools import pairwise

import polars as pl

from common.files import DataError
from features.encode.days import Day
from features.schema.schema import Schema


def check_time_order(days: list[Day], schema: Schema) -> None:
    """Check that no day ends before the day before it has begun, by any time column.

    Days may overlap, and so do columns of times that have nothing to do with the order of the log.

    Args:
        days: The days of the log, in the order in which they are split.
        schema: Its schema.

    Raises:
        DataError: A day is wholly earlier than the one before it.
    """
    if not schema.time:
        return
    first_times, last_times = (
        pl.concat([day.all_rows().select(bound).collect() for day in days])
        for bound in (pl.col(schema.time).min(), pl.col(schema.time).max())
    )
    for name in schema.time:
        bounds = zip(days, first_times[name], last_times[name], strict=True)
        known = [(day, first, last) for day, first, last in bounds if first is not None]
        for (day, first, last), (next_day, next_first, next_last) in pairwise(known):
            if next_last <= first and next_first < last:
                raise DataError(
                    f"{next_day.name} comes after {day.name}, but is earlier by the column {name}: "
                    f"it ends at {next_last}, and {day.name} begins at {first}. The log must be "
                    "oldest first: reverse its rows, or rename its files in time order"
                )
