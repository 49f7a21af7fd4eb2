"""Days of rows, and which of them are for training, validation and test."""

import math
from collections.abc import Callable
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from common.config.params import DaySplit, FoldSplit
from common.files import DataError

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(len(SPLITS))

Codes = NDArray[np.uint8]
SplitOf = Callable[[int], Codes]  # a day -> the split of each of its rows, an index into SPLITS


def day_bounds(rows_per_file: list[int], num_days: int) -> list[int]:
    """Row positions where days begin, and the end of the last; one file is cut into num_days by row count, extra rows to the first."""
    if len(rows_per_file) == 1:
        size, extra = divmod(rows_per_file[0], num_days)
        rows_per_file = [size + (day < extra) for day in range(num_days)]
    return [0, *accumulate(rows_per_file)]


def split_by_days(bounds: list[int], params: DaySplit) -> SplitOf:
    """Cut by time. The last test_days are test, the valid_days before them validation (or the two swapped), the rest train.

    Raises DataError when a split would have no rows.
    """
    num_days = len(bounds) - 1
    last_days = (
        [params.test_days, params.valid_days]
        if params.test_first
        else [params.valid_days, params.test_days]
    )
    order = [TRAIN, TEST, VALID] if params.test_first else [TRAIN, VALID, TEST]
    cuts = [
        0,
        _row(bounds, num_days - sum(last_days)),
        _row(bounds, num_days - last_days[1]),
        bounds[-1],
    ]
    for split, start, end in zip(order, cuts[:-1], cuts[1:], strict=True):
        if end <= start:
            raise DataError(
                f"the {SPLITS[split]} split has no rows: the log has {bounds[-1]:,} in {num_days} days, features.split.valid_days is "
                f"{params.valid_days} and features.split.test_days {params.test_days}; give a longer log or change these"
            )
    return lambda day: np.repeat(
        np.array(order, np.uint8), np.diff(np.clip(cuts, bounds[day], bounds[day + 1]))
    )


def split_by_folds(labels: Codes, bounds: list[int], params: FoldSplit) -> SplitOf:
    """Stratified folds: the first is test, the second validation, the rest train.

    labels: 0 or 1, of every row. The folds are those of scikit-learn's StratifiedKFold(folds, shuffle=True, random_state=seed).
    """
    num_each = [int((labels == label).sum()) for label in (0, 1)]
    if min(num_each) < params.folds:
        raise DataError(
            f"features.split.folds is {params.folds}, but the log has {num_each[0]:,} rows without and {num_each[1]:,} with a click; "
            "each fold needs one of both"
        )
    random = np.random.RandomState(
        params.seed
    )  # the generator that the published folds were drawn with
    classes = [labels[0], 1 - labels[0]]  # in the order in which they appear
    of_sorted = np.sort(labels == classes[1])
    allocation = [
        np.bincount(of_sorted[fold :: params.folds], minlength=2) for fold in range(params.folds)
    ]
    folds = np.empty(len(labels), np.uint8)
    for k, label in enumerate(classes):
        folds_of_class = np.repeat(
            np.arange(params.folds, dtype=np.uint8), [counts[k] for counts in allocation]
        )
        random.shuffle(folds_of_class)
        folds[labels == label] = folds_of_class
    codes = np.array([TEST, VALID, *[TRAIN] * (params.folds - 2)], np.uint8)[folds]
    return lambda day: codes[bounds[day] : bounds[day + 1]]


def _row(bounds: list[int], days: float) -> int:
    """The row at which so many days have passed; within a day by row count, rounded up."""
    if days <= 0:
        return 0
    day = math.floor(days)
    if day >= len(bounds) - 1:
        return bounds[-1]
    return bounds[day] + math.ceil(round((days - day) * (bounds[day + 1] - bounds[day]), 6))
