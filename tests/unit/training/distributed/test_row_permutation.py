"""Rows that are dealt out over the places of a table."""

import pytest
import torch

from training.distributed.sharding.row_permutation import (
    deal,
    gather_up,
    places_of,
    rows_at,
    stride_of,
)

SIZES = [1, 2, 3, 4, 12, 97, 1000, 10_007, 65_536]


@pytest.mark.parametrize("k", [0, 1, 25])
@pytest.mark.parametrize("num_rows", SIZES)
def test_every_row_has_a_place_of_its_own(num_rows: int, k: int) -> None:
    rows = torch.arange(num_rows, dtype=torch.int32)
    places = places_of(rows, k, num_rows, stride_of(num_rows))
    assert places.dtype == torch.int64
    assert places.sort().values.tolist() == list(range(num_rows))
    assert torch.equal(rows_at(places, k, num_rows), rows.long())


def test_the_largest_table_does_not_overflow() -> None:
    num_rows = 2**31 - 1
    rows = torch.tensor([0, 1, num_rows - 1])
    places = places_of(rows, 25, num_rows, stride_of(num_rows))
    assert (places >= 0).all()
    assert torch.equal(rows_at(places, 25, num_rows), rows)


@pytest.mark.parametrize("num_ranks", [2, 3, 8, 64])
@pytest.mark.parametrize("first", [1000, 50_000])
def test_the_first_rows_are_spread_over_all_ranks(num_ranks: int, first: int) -> None:
    """The frequent values: no rank has a tenth more of them than its share, or three rows."""
    num_rows = 1_000_003
    block = -(-num_rows // num_ranks)
    of_ranks = torch.bincount(
        places_of(torch.arange(first), 0, num_rows, stride_of(num_rows)) // block,
        minlength=num_ranks,
    )
    assert of_ranks.sum() == first
    assert of_ranks.max() <= max(1.1 * first / num_ranks, first / num_ranks + 3)


def test_the_first_rows_of_many_tables_are_spread_as_well() -> None:
    """The row of rare and unseen values is the first of each table, and most asked for."""
    places = [
        int(places_of(torch.tensor(0), k, num_rows, stride_of(num_rows))) * 4 // num_rows
        for k, num_rows in enumerate(range(10_000, 50_000, 2_000))
    ]
    assert {places.count(quarter) for quarter in range(4)} <= {4, 5, 6}


@pytest.mark.parametrize("num_rows", SIZES)
def test_what_was_dealt_is_gathered_up(num_rows: int) -> None:
    values = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(num_rows))
    part = torch.zeros(num_rows, 4)
    deal(5, part, values)
    assert torch.equal(
        part[places_of(torch.arange(num_rows), 5, num_rows, stride_of(num_rows))], values
    )
    gather_up(5, part)
    assert torch.equal(part, values)


def test_the_first_rows_alone() -> None:
    part = torch.zeros(10)
    deal(3, part, torch.arange(1.0, 5.0))
    gather_up(3, part)
    assert part.tolist() == [1, 2, 3, 4, 0, 0, 0, 0, 0, 0]
