"""The split of each row: training, validation or test, by time or by stratified folds."""

import math
from collections.abc import Callable
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from common.config.params import DaySplit, FoldSplit
from common.files import DataError
from common.numbers import bounds_of_equal_parts

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(len(SPLITS))

# The split of each row of a day: indices into SPLITS.
SplitCodes = NDArray[np.uint8]
# A function from the number of a day in the log to the split of each of its rows.
SplitOfDay = Callable[[int], SplitCodes]


def day_bounds(rows_per_file: list[int], num_days: int) -> list[int]:
    """Return the positions in the log where days begin, and the end of the last day.

    Each file is a day. A single file is cut into `num_days` days of equally many rows; the first
    days have one row more if the number of rows is not divisible.
    """
    if len(rows_per_file) == 1:
        return bounds_of_equal_parts(rows_per_file[0], num_days)
    return [0, *accumulate(rows_per_file)]


def split_by_days(bounds: list[int], params: DaySplit) -> SplitOfDay:
    """Split the log by time: the last days are for validation and test, all others for training.

    Args:
        bounds: The result of `day_bounds`.
        params: The lengths of the two splits, and their order.

    Raises:
        DataError: A split has no rows.
    """
    num_days = len(bounds) - 1
    if params.test_first:
        order, last_days = [TRAIN, TEST, VALID], [params.test_days, params.valid_days]
    else:
        order, last_days = [TRAIN, VALID, TEST], [params.valid_days, params.test_days]
    cuts = [
        0,
        _row_after(bounds, num_days - sum(last_days)),
        _row_after(bounds, num_days - last_days[1]),
        bounds[-1],
    ]
    for split, start, end in zip(order, cuts[:-1], cuts[1:], strict=True):
        if end <= start:
            raise DataError(
                f"the {SPLITS[split]} split has no rows: the log has {bounds[-1]:,} rows in"
                f" {num_days} days, features.split.valid_days is {params.valid_days} and"
                f" features.split.test_days {params.test_days}; give a longer log or change these"
            )

    def split_of_day(day: int) -> SplitCodes:
        cuts_in_day = np.clip(cuts, bounds[day], bounds[day + 1])
        return np.repeat(np.array(order, np.uint8), np.diff(cuts_in_day))

    return split_of_day


def split_by_folds(labels: NDArray[np.uint8], bounds: list[int], params: FoldSplit) -> SplitOfDay:
    """Split the log into stratified folds: one for test, one for validation, others for training.

    The folds are those of scikit-learn's `StratifiedKFold(folds, shuffle=True, random_state=seed)`.

    Args:
        labels: The label of every row of the log, 0 or 1.
        bounds: The result of `day_bounds`.
        params: The number of folds, and the seed.

    Raises:
        DataError: There are fewer rows of a label than folds.
    """
    num_each = [int((labels == label).sum()) for label in (0, 1)]
    if min(num_each) < params.folds:
        raise DataError(
            f"features.split.folds is {params.folds}, but the log has {num_each[0]:,} rows without"
            f" and {num_each[1]:,} with a click; each fold needs one of both"
        )
    # The published folds were drawn with this generator.
    random = np.random.RandomState(params.seed)
    classes = [labels[0], 1 - labels[0]]  # in the order in which they appear
    is_second_class = np.sort(labels == classes[1])
    rows_by_fold_and_class = [
        np.bincount(is_second_class[fold :: params.folds], minlength=2)
        for fold in range(params.folds)
    ]
    fold_of_row = np.empty(len(labels), np.uint8)
    for k, label in enumerate(classes):
        folds_of_class = np.repeat(
            np.arange(params.folds, dtype=np.uint8),
            [counts[k] for counts in rows_by_fold_and_class],
        )
        random.shuffle(folds_of_class)
        fold_of_row[labels == label] = folds_of_class
    split_of_fold = np.array([TEST, VALID] + [TRAIN] * (params.folds - 2), np.uint8)
    codes = split_of_fold[fold_of_row]
    return lambda day: codes[bounds[day] : bounds[day + 1]]


def _row_after(bounds: list[int], num_days: float) -> int:
    """Return the row at which this number of days has passed.

    A fraction of a day is that share of its rows, rounded up.
    """
    if num_days <= 0:
        return 0
    day = math.floor(num_days)
    if day >= len(bounds) - 1:
        return bounds[-1]
    rows_of_day = bounds[day + 1] - bounds[day]
    # Rounding first keeps an error of floating point from adding a row.
    return bounds[day] + math.ceil(round((num_days - day) * rows_of_day, 6))
