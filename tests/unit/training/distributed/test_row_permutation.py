"""The permutation of the rows of a sharded table."""

import pytest
import torch

from common.numbers import ceil_div
from training.distributed.sharding.row_permutation import (
    permute,
    positions_of,
    rows_at,
    stride_of,
    unpermute,
)

SIZES = [1, 2, 3, 4, 12, 97, 1000, 10_007, 65_536]


@pytest.mark.parametrize("k", [0, 1, 25])
@pytest.mark.parametrize("num_rows", SIZES)
def test_every_row_has_its_own_position(num_rows: int, k: int) -> None:
    rows = torch.arange(num_rows, dtype=torch.int32)
    positions = positions_of(rows, k, num_rows, stride_of(num_rows))
    assert positions.dtype == torch.int64
    assert positions.sort().values.tolist() == list(range(num_rows))
    assert torch.equal(rows_at(positions, k, num_rows), rows.long())


def test_the_largest_table_does_not_overflow() -> None:
    num_rows = 2**31 - 1
    rows = torch.tensor([0, 1, num_rows - 1])
    positions = positions_of(rows, 25, num_rows, stride_of(num_rows))
    assert (positions >= 0).all()
    assert torch.equal(rows_at(positions, 25, num_rows), rows)


@pytest.mark.parametrize("num_ranks", [2, 3, 8, 64])
@pytest.mark.parametrize("num_frequent", [1000, 50_000])
def test_the_first_rows_are_spread_over_all_ranks(num_ranks: int, num_frequent: int) -> None:
    """The first rows are frequent values. A rank exceeds its share by at most 10 % or 3 rows."""
    num_rows = 1_000_003
    positions = positions_of(torch.arange(num_frequent), 0, num_rows, stride_of(num_rows))
    ranks = positions // ceil_div(num_rows, num_ranks)
    rows_of_rank = torch.bincount(ranks, minlength=num_ranks)
    assert rows_of_rank.sum() == num_frequent
    share = num_frequent / num_ranks
    assert rows_of_rank.max() <= max(1.1 * share, share + 3)


def test_the_first_rows_of_many_tables_are_spread_too() -> None:
    """The first row of each table is for rare and unseen values, and is read most often."""
    quarters = [
        int(positions_of(torch.tensor(0), k, num_rows, stride_of(num_rows))) * 4 // num_rows
        for k, num_rows in enumerate(range(10_000, 50_000, 2_000))
    ]
    assert {quarters.count(quarter) for quarter in range(4)} <= {4, 5, 6}


@pytest.mark.parametrize("num_rows", SIZES)
def test_unpermute_is_the_inverse_of_permute(num_rows: int) -> None:
    values = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(num_rows))
    table = torch.zeros(num_rows, 4)
    permute(5, table, values)
    positions = positions_of(torch.arange(num_rows), 5, num_rows, stride_of(num_rows))
    assert torch.equal(table[positions], values)
    unpermute(5, table)
    assert torch.equal(table, values)


@pytest.mark.parametrize("num_rows", SIZES)
def test_permute_takes_blocks_of_rows(num_rows: int) -> None:
    values = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(num_rows))
    whole, in_blocks = torch.zeros(num_rows, 4), torch.zeros(num_rows, 4)
    permute(5, whole, values)
    for first in range(0, num_rows, 3):
        permute(5, in_blocks, values[first : first + 3], first)
    assert torch.equal(in_blocks, whole)


def test_permute_takes_only_the_first_rows() -> None:
    table = torch.zeros(10)
    permute(3, table, torch.arange(1.0, 5.0))
    unpermute(3, table)
    assert table.tolist() == [1, 2, 3, 4, 0, 0, 0, 0, 0, 0]
