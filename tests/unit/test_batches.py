from itertools import pairwise
from pathlib import Path

import pytest
import torch

from features.schema import Schema
from tests.small_features import ROW_GROUP_ROWS, write_features
from training.batches import Batch, Batches, share

DAYS = [120, 3, 157]  # row groups of 50, 50, 20 | 3 | 50, 50, 50, 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Schema]:
    root = tmp_path_factory.mktemp("features")
    return root / "artifacts/features/train", write_features(root, {"train": DAYS})


def read(made: tuple[Path, Schema], batch_size: int, shuffle_rows: int, seed: int = 1, rank: int = 0, world_size: int = 1) -> list[Batch]:
    directory, schema = made
    batches = Batches(directory, schema, batch_size=batch_size, shuffle_rows=shuffle_rows, seed=(seed, 0), rank=rank, world_size=world_size)
    result = list(batches)
    assert len(batches) == len(result)
    return result


def row_numbers(batches: list[Batch]) -> list[int]:
    return [round(number * 1000) for batch in batches for number in batch.rows.dense[:, -1].tolist()]


@pytest.mark.parametrize("batch_size", [1, 16, 64, 300])
@pytest.mark.parametrize("shuffle_rows", [0, 10, 100, 1000])
def test_every_row_once_in_full_batches(made: tuple[Path, Schema], batch_size: int, shuffle_rows: int) -> None:
    batches = read(made, batch_size, shuffle_rows)
    assert sorted(row_numbers(batches)) == list(range(sum(DAYS)))
    assert (row_numbers(batches) == list(range(sum(DAYS)))) == (shuffle_rows == 0)
    assert {batch.num_rows for batch in batches[:-1]} <= {batch_size}
    assert batches[-1].num_rows == (sum(DAYS) % batch_size or batch_size)


def test_rows_stay_together_and_are_contiguous(made: tuple[Path, Schema]) -> None:
    straight = read(made, 300, 0)[0].rows
    for (dense, ids, labels), _ in read(made, 64, 1000):
        assert (dense.dtype, ids.dtype, labels.dtype) == (torch.float32, torch.int32, torch.float32)
        assert dense.is_contiguous()
        assert ids.is_contiguous()
        where = (dense[:, -1] * 1000).round().long()
        assert torch.equal(dense, straight.dense[where])
        assert torch.equal(ids, straight.ids[where])
        assert torch.equal(labels, straight.labels[where])


def test_the_order_follows_from_the_seed(made: tuple[Path, Schema]) -> None:
    assert row_numbers(read(made, 16, 100, seed=1)) == row_numbers(read(made, 16, 100, seed=1))
    assert row_numbers(read(made, 16, 100, seed=1)) != row_numbers(read(made, 16, 100, seed=2))


def test_a_pool_is_bounded_and_mixes_days(made: tuple[Path, Schema]) -> None:
    """The first 100 rows come from a pool of at most 100: two row groups of 50, or more of the smaller ones; not in file order."""
    starts = [0, 50, 100, 120, 123, 173, 223, 273, 280]
    first_pools = []
    for seed in range(5):
        numbers = row_numbers(read(made, 10, 100, seed=seed))
        groups = {k for number in numbers[:50] for k, (a, b) in enumerate(pairwise(starts)) if a <= number < b}
        assert sum(starts[k + 1] - starts[k] for k in groups) <= 2 * ROW_GROUP_ROWS
        first_pools.append(frozenset(groups))
    assert len(set(first_pools)) > 1


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("shuffle_rows", [0, 100])
def test_ranks_share_each_batch_in_order(made: tuple[Path, Schema], world_size: int, shuffle_rows: int) -> None:
    alone = read(made, 31, shuffle_rows)
    ranks = [read(made, 31, shuffle_rows, rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert {part.num_rows for part in parts} == {whole.num_rows}
        for wanted, *pieces in zip(whole.rows, *(part.rows for part in parts), strict=True):
            assert torch.equal(wanted, torch.cat(pieces))


def test_shares_are_even_to_a_row() -> None:
    for num_rows in range(9):
        sizes = [len(range(9)[share(num_rows, rank, 4)]) for rank in range(4)]
        assert sum(sizes) == num_rows
        assert max(sizes) - min(sizes) <= 1
