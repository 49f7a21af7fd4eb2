"""Days and splits by time."""

import pytest

from features.files import DataError
from features.split import day_bounds, split_pieces
from tests.support import make_params


def cut(bounds, **changes):
    pieces = split_pieces(bounds, make_params(**{f"features__{key}": value for key, value in changes.items()}).features)
    assert sorted(piece.start for piece in pieces)[1:] == sorted(piece.end for piece in pieces)[:-1]
    ranges = {}
    for piece in pieces:
        start, end = ranges.get(piece.split, (piece.start, piece.end))
        ranges[piece.split] = (min(start, piece.start), max(end, piece.end))
    return ranges


def test_one_file_is_cut_into_days():
    assert day_bounds([200], 7) == [0, 29, 58, 87, 116, 144, 172, 200]


def test_each_of_several_files_is_a_day():
    assert day_bounds([5, 7, 1], 7) == [0, 5, 12, 13]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"train": (0, 20), "valid": (20, 26), "test": (26, 31)}),
        ({"test_first": True}, {"train": (0, 20), "test": (20, 26), "valid": (26, 31)}),
        ({"valid_days": 1, "test_days": 1}, {"train": (0, 10), "valid": (10, 20), "test": (20, 31)}),
        ({"valid_days": 0.1, "test_days": 0.2}, {"train": (0, 28), "valid": (28, 29), "test": (29, 31)}),
    ],
)
def test_fractions_of_the_last_days(changes, expected):
    assert cut([0, 10, 20, 31], **changes) == expected


@pytest.mark.parametrize(("bounds", "changes", "split"), [([0, 10], {"valid_days": 1.0}, "train"), ([0, 1, 1], {}, "valid")])
def test_a_split_without_rows(bounds, changes, split):
    with pytest.raises(DataError, match=f"the {split} split has no rows"):
        cut(bounds, **changes)
