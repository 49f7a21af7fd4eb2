"""Bags: rows of lists that are cut, joined and put into another order."""

import pytest
import torch

from training.models.bags import Bag

LISTS = [[3, 1], [], [4], [1, 5, 9], [], []]


def bag_of(lists: list[list[int]], *, weighted: bool = False) -> Bag:
    values = torch.tensor([value for one in lists for value in one], dtype=torch.int32)
    starts = torch.tensor([sum(map(len, lists[:k])) for k in range(len(lists) + 1)])
    return Bag(values, starts, values / 8 if weighted else None)


def lists_of(bag: Bag) -> list[list[int]]:
    if bag.weights is not None:
        assert torch.equal(bag.weights, bag.values / 8)
    assert bag.starts.dtype == torch.int64
    assert bag.values.dtype == torch.int32
    return [bag.values[bag.starts[k] : bag.starts[k + 1]].tolist() for k in range(bag.num_rows)]


@pytest.mark.parametrize("weighted", [False, True])
def test_a_part_has_the_rows_of_the_slice(weighted: bool) -> None:
    bag = bag_of(LISTS, weighted=weighted)
    for start in range(len(LISTS) + 1):
        for stop in range(start, len(LISTS) + 1):
            part = bag.part(start, stop)
            assert lists_of(part) == LISTS[start:stop]
            assert part.starts[0] == 0
            assert len(part.values) == part.starts[-1]
            if stop > start + 1:
                assert lists_of(part.part(1, stop - start)) == LISTS[start + 1 : stop]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", [[], [0], [5, 0, 3], [3, 3, 1, 2, 0, 5, 4]])
def test_rows_are_taken_in_any_order(order: list[int], weighted: bool) -> None:
    taken = bag_of(LISTS, weighted=weighted).take(torch.tensor(order, dtype=torch.int64))
    assert lists_of(taken) == [LISTS[row] for row in order]


@pytest.mark.parametrize("weighted", [False, True])
def test_parts_are_put_together(weighted: bool) -> None:
    bag = bag_of(LISTS, weighted=weighted)
    parts = [bag.part(0, 2), bag.part(2, 2), bag.part(2, 4), bag.part(4, 6)]
    assert lists_of(Bag.concat(parts)) == LISTS
    assert lists_of(Bag.concat(parts[2:])) == LISTS[2:]
    assert lists_of(Bag.concat(parts[:1])) == LISTS[:2]


def test_a_copy_shares_no_memory() -> None:
    bag = bag_of(LISTS, weighted=True)
    copy = bag.copy()
    for one, other in zip(bag, copy, strict=True):
        assert torch.equal(one, other)
        other.zero_()
    assert lists_of(bag) == LISTS
