"""The counts of distinct values of a whole log: exact up to a limit, in bounded memory."""

import polars as pl
import pytest

import features.infer.check_log as check_log
from features.infer.check_log import ColumnSummary


@pytest.mark.parametrize("kind", ["categorical", "dense"])
def test_distinct_values_are_exact_over_many_pieces(kind: str) -> None:
    column = ColumnSummary("c", kind)
    for piece in range(50):
        column.add(pl.Series([None, *range(piece, piece + 100)]))
    assert (column.num_distinct, column.num_values, column.num_missing) == (149, 5000, 50)
    assert (column.low, column.high) == ((0, 148) if kind == "dense" else (None, None))


def test_above_the_limit_values_are_no_longer_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_log, "MAX_DISTINCT", 1000)
    column = ColumnSummary("c", "categorical")
    column.add(pl.Series(range(1000)))
    assert column.num_distinct == 1000
    column.add(pl.Series(range(500, 1500)))
    assert column.num_distinct is None
    assert column._known is None
    assert column._new == []
    assert not column.is_nearly_distinct  # 1,500 of 2,000
    column = ColumnSummary("c", "categorical")
    column.add(pl.Series(range(2000)))
    assert column.num_distinct is None
    assert column.is_nearly_distinct
