"""The order of the rows in time, where the log has columns of times.

The last days become validation and test rows. A model that is trained on later rows than those it
is tested on would look better than it is.
"""

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import cast

import polars as pl

from common.files import DataError
from features.encode.days import Day
from features.encode.split import TRAIN, SplitOfDay
from features.schema.schema import Schema

# A larger share of training rows that are later than other rows is no accident, as a click that was
# logged late is.
MAX_LATER_SHARE = 0.01


def check_time_order(days: list[Day], schema: Schema) -> None:
    """Check that no day ends before the day before it has begun, by any row time.

    Days may overlap. Where the schema names the column of the day (`days`), there is nothing to
    check.

    Args:
        days: The days of the log, in the order in which they are split.
        schema: Its schema.

    Raises:
        DataError: A day is wholly earlier than the one before it.
    """
    if not schema.row_times or schema.days:
        return
    first_times, last_times = (
        pl.concat([day.all_rows().select(bound).collect() for day in days])
        for bound in (pl.col(schema.row_times).min(), pl.col(schema.row_times).max())
    )
    for name in schema.row_times:
        bounds = zip(days, first_times[name], last_times[name], strict=True)
        known = [(day, first, last) for day, first, last in bounds if first is not None]
        for (day, first, last), (next_day, next_first, next_last) in pairwise(known):
            if next_last <= first and next_first < last:
                raise DataError(
                    f"{next_day.name} comes after {day.name}, but is earlier by the column {name}: "
                    f"it ends at {next_last}, and {day.name} begins at {first}. The log must be "
                    f"oldest first. If {name} is the time of a row, let the schema name it: "
                    f"days: {{column: {name}}}; if it is another time, let it say row_time: false;"
                    " or rename the files in time order"
                )


def check_later_training_rows(days: list[Day], split_of_day: SplitOfDay, schema: Schema) -> None:
    """Check that training rows are not later than validation or test rows, by any row time.

    A model that knows what came later looks better than it is.

    Args:
        days: The days of the log.
        split_of_day: The split of each row of a day.
        schema: The schema of the log.

    Raises:
        DataError: More than MAX_LATER_SHARE of the training rows are later than the first
            validation or test row.
    """
    if schema.days:
        return
    for name in schema.row_times:
        first_times = [times.min() for times in _times(days, split_of_day, name, of_training=False)]
        known = [cast("datetime", time) for time in first_times if time is not None]
        num_later = num_rows = 0
        for times in _times(days, split_of_day, name, of_training=True) if known else ():
            num_later += int((times > min(known)).sum())
            num_rows += len(times) - times.null_count()
        if num_later > MAX_LATER_SHARE * num_rows:
            raise DataError(
                f"{num_later / num_rows:.0%} of the training rows are later than the first"
                f" validation or test row, which is of {min(known)} by the column {name}. If {name}"
                " is the time of a row, let the schema name it, and rows are sorted by day:"
                f" days: {{column: {name}}}; if it is another time, such as that of a sign-up, let"
                f" the schema say so: row_time: false"
            )


def _times(
    days: list[Day], split_of_day: SplitOfDay, name: str, *, of_training: bool
) -> Iterator[pl.Series]:
    """Yield the times of the training rows, or of the other rows, of each day that has some."""
    for k, day in enumerate(days):
        is_asked = (split_of_day(k) == TRAIN) == of_training
        if is_asked.any():
            yield day.all_rows().select(name).collect()[name].filter(pl.Series(is_asked))
