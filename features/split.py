"""Time order to days, and days to train, validation and test rows. Rows are global positions in the log, end exclusive."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

from features.files import DataError
from features.params import Features

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Piece:
    """Rows start .. end of one day that belong to one split."""

    split: str
    day: int
    start: int
    end: int


def day_bounds(rows_per_file: list[int], num_days: int) -> list[int]:
    """Row positions where days begin, and the end of the last; one file is cut into num_days by row count, extra rows to the first."""
    if len(rows_per_file) == 1:
        size, extra = divmod(rows_per_file[0], num_days)
        rows_per_file = [size + (day < extra) for day in range(num_days)]
    return [0, *accumulate(rows_per_file)]


def split_pieces(bounds: list[int], params: Features) -> list[Piece]:
    """The days cut by time: the last test_days are test, the valid_days before them validation (or the two swapped), the rest train.

    Raises DataError when a split would have no rows.
    """
    num_days = len(bounds) - 1
    last_days = [params.test_days, params.valid_days] if params.test_first else [params.valid_days, params.test_days]
    order = ["train", "test", "valid"] if params.test_first else ["train", "valid", "test"]
    cuts = [0, _row(bounds, num_days - sum(last_days)), _row(bounds, num_days - last_days[1]), bounds[-1]]
    for split, start, end in zip(order, cuts[:-1], cuts[1:], strict=True):
        if end <= start:
            raise DataError(
                f"the {split} split has no rows: the log has {bounds[-1]:,} in {num_days} days, features.valid_days is {params.valid_days} "
                f"and features.test_days {params.test_days}; give a longer log or change these"
            )
    return [piece for split, start, end in zip(order, cuts[:-1], cuts[1:], strict=True) for piece in _days(split, start, end, bounds)]


def _row(bounds: list[int], days: float) -> int:
    """The row at which so many days have passed; within a day by row count, rounded up."""
    if days <= 0:
        return 0
    day = math.floor(days)
    if day >= len(bounds) - 1:
        return bounds[-1]
    return bounds[day] + math.ceil(round((days - day) * (bounds[day + 1] - bounds[day]), 6))


def _days(split: str, start: int, end: int, bounds: list[int]) -> Iterator[Piece]:
    for day, (first, last) in enumerate(pairwise(bounds)):
        if max(start, first) < min(end, last):
            yield Piece(split, day, max(start, first), min(end, last))
