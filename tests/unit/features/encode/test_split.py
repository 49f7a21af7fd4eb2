"""The cut of a log into days, and the splits by time and by stratified folds."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from common.config.params import DaySplit, FoldSplit
from common.files import DataError
from features.encode.split import (
    SPLITS,
    TEST,
    TRAIN,
    VALID,
    day_bounds,
    split_by_days,
    split_by_folds,
)


def cut(bounds: list[int], **changes: Any) -> dict[str, tuple[int, int]]:
    """Return the first row and the row after the last of each split, whose rows are consecutive."""
    params = DaySplit(
        **{"by": "days", "valid_days": 0.5, "test_days": 0.5, "test_first": False, **changes}
    )
    split_of_day = split_by_days(bounds, params)
    days = [split_of_day(day) for day in range(len(bounds) - 1)]
    assert [len(codes) for codes in days] == [end - start for start, end in pairwise(bounds)]
    codes = np.concatenate(days)
    assert (np.diff(codes) != 0).sum() == 2
    return {
        SPLITS[code]: (int(rows[0]), int(rows[-1]) + 1)
        for code in range(3)
        for rows in [np.flatnonzero(codes == code)]
    }


def test_one_file_is_cut_into_days() -> None:
    assert day_bounds([200], 7) == [0, 29, 58, 87, 116, 144, 172, 200]


def test_each_of_several_files_is_a_day() -> None:
    assert day_bounds([5, 7, 1], 7) == [0, 5, 12, 13]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"train": (0, 20), "valid": (20, 26), "test": (26, 31)}),
        ({"test_first": True}, {"train": (0, 20), "test": (20, 26), "valid": (26, 31)}),
        (
            {"valid_days": 1.0, "test_days": 1.0},
            {"train": (0, 10), "valid": (10, 20), "test": (20, 31)},
        ),
        (
            {"valid_days": 0.1, "test_days": 0.2},
            {"train": (0, 28), "valid": (28, 29), "test": (29, 31)},
        ),
    ],
)
def test_fractions_of_the_last_days(
    changes: dict[str, Any], expected: dict[str, tuple[int, int]]
) -> None:
    assert cut([0, 10, 20, 31], **changes) == expected


@pytest.mark.parametrize(
    ("bounds", "changes", "split"),
    [([0, 10], {"valid_days": 1.0}, "train"), ([0, 1, 1], {}, "valid")],
)
def test_a_split_without_rows_is_refused(
    bounds: list[int], changes: dict[str, Any], split: str
) -> None:
    with pytest.raises(DataError, match=f"the {split} split has no rows"):
        cut(bounds, **changes)


@pytest.mark.parametrize(("num_rows", "rate"), [(100, 0.3), (1234, 0.25), (50_003, 0.7)])
def test_folds_are_those_of_scikit_learn(num_rows: int, rate: float) -> None:
    labels = (np.random.default_rng(num_rows).random(num_rows) < rate).astype(np.uint8)
    bounds = [0, num_rows // 3, num_rows]
    split_of_day = split_by_folds(labels, bounds, FoldSplit(by="folds", folds=10, seed=2018))
    folds = [
        test
        for _, test in StratifiedKFold(10, shuffle=True, random_state=2018).split(labels, labels)
    ]
    expected = np.full(num_rows, TRAIN)
    expected[folds[0]], expected[folds[1]] = TEST, VALID
    assert np.concatenate([split_of_day(0), split_of_day(1)]).tolist() == expected.tolist()


def test_fewer_clicks_than_folds_are_refused() -> None:
    with pytest.raises(DataError, match="93 rows without and 7 with a click"):
        split_by_folds(
            np.repeat(np.array([0, 1], np.uint8), [93, 7]),
            [0, 100],
            FoldSplit(by="folds", folds=10, seed=1),
        )
