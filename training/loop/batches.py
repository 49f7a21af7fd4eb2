"""Feature files to batches that are a function of the step: row groups are read once an epoch, rows are permuted in pools of bounded
size, and the next pool is made while this one is trained on."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.lookahead import map_ahead
from features.schema.schema import Schema

POOLS_AHEAD = 1  # of at most shuffle_rows rows each, made by one thread
BLOCK_ROWS = 2048  # of columns that become rows together: they stay in the cache


class Rows(NamedTuple):
    """R rows as contiguous matrices."""

    dense: Tensor  # (R, N) float32
    ids: Tensor  # (R, F) int32, local to each column
    labels: Tensor  # (R,) float32, 0 or 1

    def part(self, start: int, stop: int) -> "Rows":
        """Some of the rows, not copied."""
        return Rows(*(values[start:stop] for values in self))

    def copy(self) -> "Rows":
        return Rows(*(values.clone() for values in self))


class Batch(NamedTuple):
    """One rank's rows of a global batch, and how many all ranks have together."""

    rows: Rows
    num_rows: int

    def to(self, device: torch.device) -> "Batch":
        return Batch(Rows(*(values.to(device) for values in self.rows)), self.num_rows)


class Pool(NamedTuple):
    """Row groups permuted together, the number-th of an epoch; its first `skip` rows (after permutation) are not wanted."""

    epoch: int
    number: int
    groups: list[tuple[pq.ParquetFile, int]]
    skip: int
    is_last: bool  # of the epoch


class Batches:
    """The batches of directory/*.parquet (written by the features stage): the same for the same arguments, wherever one begins.

    An epoch has each row once and ends with what is left for a last, smaller batch. Its order follows from seed and epoch: row groups
    are dealt to pools of at most shuffle_rows rows (at least one group), each pool getting some of every part of the log, and the rows
    of a pool are permuted; 0 keeps file order. Each file is a day; last_days leaves out those before. Of each global batch of batch_size
    rows, rank of world_size ranks gets its contiguous share, which may be empty.
    """

    def __init__(
        self,
        directory: Path,
        schema: Schema,
        *,
        batch_size: int,
        shuffle_rows: int = 0,
        seed: int = 0,
        last_days: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.schema, self.batch_size, self.shuffle_rows, self.seed = (
            schema,
            batch_size,
            shuffle_rows,
            seed,
        )
        self.rank, self.world_size = rank, world_size
        # its buffer for a whole row group is shared by all who read the file: two threads lose each other's, or crash
        self.files = [
            pq.ParquetFile(path, pre_buffer=False)
            for path in sorted(directory.glob("*.parquet"))[-(last_days or 0) :]
        ]

    @cached_property
    def num_rows(self) -> int:
        """Rows of an epoch, this rank's and the others'."""
        return sum(file.metadata.num_rows for file in self.files)

    def some_dense(self) -> Tensor:
        """The dense columns (R, N) of the first row group of each file."""
        return torch.from_numpy(
            np.concatenate([self._read(file, 0)[0] for file in self.files if file.num_row_groups])
        )

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def rows_before(self, step: int) -> int:
        """Rows of all the batches before this one."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return epoch * self.num_rows + batch * self.batch_size

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start .. stop - 1, counted over epochs. Pools before them are not read."""
        made = self._cut(map_ahead(self._load, self._pools(start, stop), POOLS_AHEAD))
        for _ in range(start, stop):
            rows = next(made)
            mine = share(len(rows.labels), self.rank, self.world_size)
            # copied, since sums may depend on where in memory a batch begins, and no pool should outlive its turn
            yield Batch(rows.part(mine.start, mine.stop).copy(), len(rows.labels))

    def rounds(self) -> Iterator[Batch]:
        """One epoch in whole batches, dealt out to the ranks in turn: as many for each, in the last round perhaps without rows.

        A row is scored in the same batch on any number of ranks, and so has the same score to the last bit.
        """
        made = self._cut(map_ahead(self._load, self._pools(0, self.steps_per_epoch), POOLS_AHEAD))
        for _ in range(0, self.steps_per_epoch, self.world_size):
            batches = list(islice(made, self.world_size))
            mine = batches[self.rank] if self.rank < len(batches) else batches[0].part(0, 0)
            yield Batch(mine.copy(), sum(len(rows.labels) for rows in batches))

    def _pools(self, start: int, stop: int) -> Iterator[Pool]:
        for epoch in range(start // self.steps_per_epoch, -(-stop // self.steps_per_epoch)):
            skip = max(0, start - epoch * self.steps_per_epoch) * self.batch_size
            plan = self._plan(epoch)
            for number, groups in enumerate(plan):
                num_rows = num_rows_of(groups)
                if skip < num_rows:
                    yield Pool(epoch, number, groups, skip, number == len(plan) - 1)
                skip = max(0, skip - num_rows)

    def _plan(self, epoch: int) -> list[list[tuple[pq.ParquetFile, int]]]:
        """The row groups of each of an epoch's pools: one, drawn at random, of every K neighbours, where K pools are needed."""
        groups = [(file, group) for file in self.files for group in range(file.num_row_groups)]
        if not self.shuffle_rows:
            return [[group] for group in groups]
        largest = max(num_rows_of([group]) for group in groups)
        num_pools = -(-len(groups) // max(1, self.shuffle_rows // largest))
        random = np.random.default_rng((self.seed, epoch))
        pools: list[list[tuple[pq.ParquetFile, int]]] = [[] for _ in range(num_pools)]
        for start in range(0, len(groups), num_pools):
            for pool, group in zip(
                random.permutation(num_pools), groups[start : start + num_pools], strict=False
            ):
                pools[pool].append(group)
        return pools

    def _load(self, pool: Pool) -> tuple[Rows, bool]:
        """A pool's rows in their new order, each written to its place as it is read, and whether the epoch ends with them."""
        num_rows, num_dense, num_fields = (
            num_rows_of(pool.groups),
            len(self.schema.dense_features),
            len(self.schema.categorical_features),
        )
        place_R = np.arange(num_rows)
        if self.shuffle_rows:
            np.random.default_rng((self.seed, pool.epoch, pool.number)).shuffle(place_R)
        shapes = (
            ((num_rows, num_dense), np.float32),
            ((num_rows, num_fields), np.int32),
            ((num_rows,), np.float32),
        )
        matrices: list[NDArray[Any]] = [np.empty(shape, dtype) for shape, dtype in shapes]
        start = 0
        for file, group in pool.groups:
            values = self._read(file, group)
            places = place_R[start : start + len(values[0])]
            for matrix, of_group in zip(matrices, values, strict=True):
                matrix[places] = of_group
            start += len(places)
        return Rows(*map(torch.from_numpy, matrices)).part(pool.skip, num_rows), pool.is_last

    def _read(
        self, file: pq.ParquetFile, group: int
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """A row group's dense (R, N), ids (R, F) and labels (R,); columns become rows a block at a time."""
        dense, categorical = self.schema.dense_features, self.schema.categorical_features
        table = file.read_row_group(
            group, columns=[self.schema.label, *dense, *categorical], use_threads=False
        )
        dense_RN = np.empty((table.num_rows, len(dense)), np.float32)
        ids_RF = np.empty((table.num_rows, len(categorical)), np.int32)
        for matrix, names in ((dense_RN, dense), (ids_RF, categorical)):
            columns = [table[name].to_numpy() for name in names]
            for start in range(0, table.num_rows, BLOCK_ROWS):
                block = slice(start, start + BLOCK_ROWS)
                for k, column in enumerate(columns):
                    matrix[block, k] = column[block]
        return dense_RN, ids_RF, table[self.schema.label].to_numpy()

    def _cut(self, pools: Iterable[tuple[Rows, bool]]) -> Iterator[Rows]:
        """Pools to batches; what a pool leaves begins the next one's first batch, but epochs do not mix."""
        rest: list[Rows] = []
        for pool, is_last in pools:
            missing = self.batch_size - sum(len(rows.labels) for rows in rest)
            first = Rows(*map(torch.cat, zip(*rest, pool.part(0, missing), strict=True)))
            others = (
                pool.part(start, start + self.batch_size)
                for start in range(missing, len(pool.labels), self.batch_size)
            )
            rest = []
            for rows in chain([first], others):
                if len(rows.labels) == self.batch_size or is_last:
                    yield rows
                else:
                    rest = [rows.copy()]


def num_rows_of(groups: list[tuple[pq.ParquetFile, int]]) -> int:
    return sum(file.metadata.row_group(group).num_rows for file, group in groups)


def share(num_rows: int, rank: int, world_size: int) -> slice:
    """The contiguous part of num_rows rows that rank takes; the parts of all ranks are disjoint, complete and differ by one row at most."""
    return slice(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)
