"""Days, and splits by time or by stratified folds."""

from itertools import pairwise

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


def cut(bounds, **changes):
    """Split -> (first row, last row + 1); each split is one stretch."""
    params = DaySplit(
        **{"by": "days", "valid_days": 0.5, "test_days": 0.5, "test_first": False, **changes}
    )
    split_of = split_by_days(bounds, params)
    days = [split_of(day) for day in range(len(bounds) - 1)]
    assert [len(codes) for codes in days] == [end - start for start, end in pairwise(bounds)]
    codes = np.concatenate(days)
    assert (np.diff(codes) != 0).sum() == 2
    return {
        SPLITS[code]: (int(places[0]), int(places[-1]) + 1)
        for code in range(3)
        for places in [np.flatnonzero(codes == code)]
    }


def test_one_file_is_cut_into_days():
    assert day_bounds([200], 7) == [0, 29, 58, 87, 116, 144, 172, 200]


def test_each_of_several_files_is_a_day():
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
def test_fractions_of_the_last_days(changes, expected):
    assert cut([0, 10, 20, 31], **changes) == expected


@pytest.mark.parametrize(
    ("bounds", "changes", "split"),
    [([0, 10], {"valid_days": 1.0}, "train"), ([0, 1, 1], {}, "valid")],
)
def test_a_split_without_rows(bounds, changes, split):
    with pytest.raises(DataError, match=f"the {split} split has no rows"):
        cut(bounds, **changes)


@pytest.mark.parametrize(("num_rows", "rate"), [(100, 0.3), (1234, 0.25), (50_003, 0.7)])
def test_folds_are_those_of_scikit_learn(num_rows, rate):
    labels = (np.random.default_rng(num_rows).random(num_rows) < rate).astype(np.uint8)
    bounds = [0, num_rows // 3, num_rows]
    split_of = split_by_folds(labels, bounds, FoldSplit(by="folds", folds=10, seed=2018))
    folds = [
        test
        for _, test in StratifiedKFold(10, shuffle=True, random_state=2018).split(labels, labels)
    ]
    expected = np.full(num_rows, TRAIN)
    expected[folds[0]], expected[folds[1]] = TEST, VALID
    assert np.concatenate([split_of(0), split_of(1)]).tolist() == expected.tolist()


def test_folds_without_a_click_each():
    with pytest.raises(DataError, match="93 rows without and 7 with a click"):
        split_by_folds(
            np.repeat(np.array([0, 1], np.uint8), [93, 7]),
            [0, 100],
            FoldSplit(by="folds", folds=10, seed=1),
        )
