"""Batches of training rows: their order, the steps of a run, and the shares of ranks."""

import os
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch

from features.schema.schema import Schema
from tests.factories.features import ROW_GROUP_ROWS, write_features
from training.distributed.collectives import share
from training.loop.batches import Batch, Batches, Rows

DAYS = [120, 3, 157]  # row groups of 50, 50, 20 | 3 | 50, 50, 50, 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Schema]:
    root = tmp_path_factory.mktemp("features")
    return root / "artifacts/features/train", write_features(root, {"train": DAYS})


def make(
    made: tuple[Path, Schema],
    batch_size: int,
    shuffle_rows: int,
    seed: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> Batches:
    directory, schema = made
    return Batches(
        sorted(directory.glob("*.parquet")),
        schema,
        batch_size=batch_size,
        shuffle_rows=shuffle_rows,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def read(made: tuple[Path, Schema], *args: int, **options: int) -> list[Batch]:
    """Return the batches of the first epoch."""
    batches = make(made, *args, **options)
    return list(batches.steps(0, batches.steps_per_epoch))


def test_a_log_may_have_more_days_than_a_process_may_open_files(made: tuple[Path, Schema]) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    batches = make(made, 16, 0)
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert len(list(batches.steps(0, batches.steps_per_epoch))) > 0
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def row_numbers(batches: list[Batch]) -> list[int]:
    return [
        round(number * 1000) for batch in batches for number in batch.rows.dense[:, -1].tolist()
    ]


@pytest.mark.parametrize("batch_size", [1, 16, 64, 300])
@pytest.mark.parametrize("shuffle_rows", [0, 10, 100, 1000])
def test_every_row_once_in_full_batches(
    made: tuple[Path, Schema], batch_size: int, shuffle_rows: int
) -> None:
    batches = read(made, batch_size, shuffle_rows)
    assert sorted(row_numbers(batches)) == list(range(sum(DAYS)))
    assert (row_numbers(batches) == list(range(sum(DAYS)))) == (shuffle_rows == 0)
    assert {batch.num_rows for batch in batches[:-1]} <= {batch_size}
    assert batches[-1].num_rows == (sum(DAYS) % batch_size or batch_size)


def are_equal(found: Rows, expected: Rows) -> bool:
    """Return whether rows have equal values and dtypes."""
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)


def tensors_of(rows: Rows) -> list[torch.Tensor]:
    """Return all tensors of rows, those of their bags included."""
    tensors = [rows.dense, rows.ids, rows.labels, rows.weights, *chain(*rows.bags)]
    return [tensor for tensor in tensors if tensor is not None]


def test_the_values_of_a_row_stay_together_in_contiguous_tensors(made: tuple[Path, Schema]) -> None:
    straight = read(made, 300, 0)[0].rows
    for (dense, ids, labels, *_), _ in read(made, 64, 1000):
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


@pytest.mark.parametrize("shuffle_rows", [0, 10, 100, 1000])
@pytest.mark.parametrize("batch_size", [16, 64, 300])
def test_a_batch_is_a_function_of_its_step(
    made: tuple[Path, Schema], batch_size: int, shuffle_rows: int
) -> None:
    """Any range of steps gives the same batches, and each of three epochs has a different order."""
    batches = make(made, batch_size, shuffle_rows)
    num_steps = 3 * batches.steps_per_epoch
    through = list(batches.steps(0, num_steps))
    assert len(through) == num_steps
    for start in range(num_steps):
        stop = min(start + 7, num_steps)
        assert batches.rows_before(start) == sum(batch.num_rows for batch in through[:start])
        for mine, wanted in zip(batches.steps(start, stop), through[start:stop], strict=True):
            assert are_equal(mine.rows, wanted.rows)
    epochs = [
        row_numbers(through[k : k + batches.steps_per_epoch])
        for k in range(0, num_steps, batches.steps_per_epoch)
    ]
    assert all(sorted(epoch) == list(range(sum(DAYS))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == (3 if shuffle_rows else 1)


def test_pools_before_the_step_are_not_read(
    made: tuple[Path, Schema], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, groups_read = make(made, 10, 50), []
    read_group = batches._read
    monkeypatch.setattr(
        batches, "_read", lambda *args: groups_read.append(args) or read_group(*args)
    )
    # Step 26 of 28 in the second epoch.
    next(batches.steps(batches.steps_per_epoch + 26, 3 * batches.steps_per_epoch))
    # An epoch has 8 row groups. The last one or two pools of the second epoch are read, and one
    # pool of the third epoch is read ahead.
    assert len(groups_read) <= 4


@pytest.mark.parametrize("pools_ahead", [1, 2, 5])
def test_reading_ahead_does_not_change_the_rows(
    made: tuple[Path, Schema], monkeypatch: pytest.MonkeyPatch, pools_ahead: int
) -> None:
    wanted = row_numbers(read(made, 16, 50))
    monkeypatch.setattr("training.loop.batches.POOLS_AHEAD", pools_ahead)
    assert row_numbers(read(made, 16, 50)) == wanted


def test_a_pool_is_bounded_and_mixes_days(made: tuple[Path, Schema]) -> None:
    """The first 50 rows come from one pool of at most 100 rows; other seeds give other pools."""
    starts = [0, 50, 100, 120, 123, 173, 223, 273, 280]
    first_pools = []
    for seed in range(5):
        numbers = row_numbers(read(made, 10, 100, seed=seed))
        groups = {
            k
            for number in numbers[:50]
            for k, (a, b) in enumerate(pairwise(starts))
            if a <= number < b
        }
        assert sum(starts[k + 1] - starts[k] for k in groups) <= 2 * ROW_GROUP_ROWS
        first_pools.append(frozenset(groups))
    assert len(set(first_pools)) > 1


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("shuffle_rows", [0, 100])
def test_ranks_share_each_batch_in_order(
    made: tuple[Path, Schema], world_size: int, shuffle_rows: int
) -> None:
    alone = read(made, 31, shuffle_rows)
    ranks = [
        read(made, 31, shuffle_rows, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert {part.num_rows for part in parts} == {whole.num_rows}
        assert are_equal(whole.rows, Rows.concat([part.rows for part in parts]))


def test_shares_differ_by_at_most_one_row() -> None:
    for num_rows in range(9):
        sizes = [len(range(9)[share(num_rows, rank, 4)]) for rank in range(4)]
        assert sum(sizes) == num_rows
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_get_whole_batches_in_rounds(made: tuple[Path, Schema], world_size: int) -> None:
    """The ranks get the batches of a single rank in turn, and all ranks get the same number."""
    alone = [batch.rows for batch in read(made, 64, 0)]
    dealt = [
        list(make(made, 64, 0, rank=rank, world_size=world_size).rounds())
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in dealt} == {-(-len(alone) // world_size)}
    in_turn = [batches[k] for k in range(len(dealt[0])) for batches in dealt]
    for found, expected in zip(in_turn, alone, strict=False):
        assert are_equal(found.rows, expected)
    assert all(len(batch.rows.labels) == 0 for batch in in_turn[len(alone) :])
    assert sum(batches[0].num_rows for batches in zip(*dealt, strict=True)) == sum(DAYS)
