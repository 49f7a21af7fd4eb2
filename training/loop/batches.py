"""Batches of the feature files, each determined by the seed and the step alone.

Row groups are read once an epoch, rows are permuted in pools of bounded size, and the next pool is
read while one is trained on.

Shapes: R rows, N dense columns, F categorical fields.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.lookahead import map_ahead
from common.numbers import ceil_div
from features.schema.schema import Schema
from training.distributed.collectives import share

POOLS_AHEAD = 1  # of at most shuffle_rows rows each, read by one thread
BLOCK_ROWS = 2048  # columns are copied to rows in blocks that stay in the cache


class Rows(NamedTuple):
    """R rows as contiguous matrices.

    Attributes:
        dense: The dense columns (R, N), float32.
        ids: The ids (R, F), int32, local to each column.
        labels: The labels (R,), float32, 0 or 1.
    """

    dense: Tensor
    ids: Tensor
    labels: Tensor

    def part(self, start: int, stop: int) -> "Rows":
        """Return the rows start .. stop - 1, not copied."""
        return Rows(*(values[start:stop] for values in self))

    def copy(self) -> "Rows":
        """Copy the rows."""
        return Rows(*(values.clone() for values in self))


class Batch(NamedTuple):
    """One rank's rows of a global batch.

    Attributes:
        rows: This rank's rows.
        num_rows: The number of rows that all ranks have together.
    """

    rows: Rows
    num_rows: int

    def to(self, device: torch.device) -> "Batch":
        """Move the rows to a device; Lightning calls this on every batch."""
        return Batch(Rows(*(values.to(device) for values in self.rows)), self.num_rows)


class FeatureFile(NamedTuple):
    """A Parquet file of features. It is open only while a row group is read.

    A log can have more days than a process may have open files.
    """

    path: Path
    metadata: pq.FileMetaData

    def open(self) -> pq.ParquetFile:
        """Open the file."""
        # With pre_buffer, threads that read one file share its buffer, and lose rows or crash.
        return pq.ParquetFile(self.path, metadata=self.metadata, pre_buffer=False)


class Pool(NamedTuple):
    """Row groups whose rows are permuted together.

    Attributes:
        epoch: The epoch, from 0.
        number: The number of the pool in its epoch, from 0.
        groups: The row groups: a file, and the number of the group in it.
        skip: The number of permuted rows that are left out at the beginning, when a run resumes.
        is_last: Whether it is the last pool of the epoch.
    """

    epoch: int
    number: int
    groups: list[tuple[FeatureFile, int]]
    skip: int
    is_last: bool


class Batches:
    """The batches of the feature files of a split.

    They are the same for the same arguments, at whatever step the reading begins. An epoch has each
    row once and ends with a smaller batch of the rows that are left. Its order follows from seed
    and epoch: each pool gets row groups from every part of the log, and the rows of a pool are
    permuted.

    Args:
        files: The Parquet files of a split, one a day, in time order.
        schema: The columns of the files.
        batch_size: Rows of a global batch.
        shuffle_rows: Rows of a pool, which has at least one row group; 0 keeps the order of the
            files.
        seed: The seed of the permutations.
        last_days: Read only so many of the last files; None reads all.
        rank: The rank whose share of each global batch is returned: a contiguous part, which may be
            empty.
        world_size: The number of ranks.
    """

    def __init__(
        self,
        files: Sequence[Path],
        schema: Schema,
        *,
        batch_size: int,
        shuffle_rows: int = 0,
        seed: int = 0,
        last_days: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.schema, self.batch_size = schema, batch_size
        self.shuffle_rows, self.seed = shuffle_rows, seed
        self.rank, self.world_size = rank, world_size
        if last_days is not None:
            files = files[-last_days:]
        self.files = [FeatureFile(path, pq.read_metadata(path)) for path in files]

    @cached_property
    def num_rows(self) -> int:
        """The number of rows of an epoch, of all ranks."""
        return sum(file.metadata.num_rows for file in self.files)

    def some_dense(self) -> Tensor:
        """Return the dense columns (R, N) of the first row group of each file."""
        return torch.from_numpy(
            np.concatenate(
                [self._read(file, 0)[0] for file in self.files if file.metadata.num_row_groups]
            )
        )

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch."""
        return ceil_div(self.num_rows, self.batch_size)

    def rows_before(self, step: int) -> int:
        """Return the number of rows of all batches before a step, counted over epochs."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return epoch * self.num_rows + batch * self.batch_size

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield this rank's batches of the steps start .. stop - 1, counted over epochs."""
        batches = self._cut(map_ahead(self._load, self._pools(start, stop), POOLS_AHEAD))
        for _ in range(start, stop):
            rows = next(batches)
            mine = share(len(rows.labels), self.rank, self.world_size)
            # A copy, because sums may depend on where in memory a batch begins, and so that the
            # pool can be freed.
            yield Batch(rows.part(mine.start, mine.stop).copy(), len(rows.labels))

    def rounds(self) -> Iterator[Batch]:
        """Yield one epoch in whole batches, which the ranks get in turn; the last may be empty.

        A row is scored in the same batch on any number of ranks, and so gets the same score to the
        last bit.
        """
        global_batches = self._cut(
            map_ahead(self._load, self._pools(0, self.steps_per_epoch), POOLS_AHEAD)
        )
        for _ in range(0, self.steps_per_epoch, self.world_size):
            batches = list(islice(global_batches, self.world_size))
            mine = batches[self.rank] if self.rank < len(batches) else batches[0].part(0, 0)
            yield Batch(mine.copy(), sum(len(rows.labels) for rows in batches))

    def _pools(self, start: int, stop: int) -> Iterator[Pool]:
        for epoch in range(start // self.steps_per_epoch, ceil_div(stop, self.steps_per_epoch)):
            skip = max(0, start - epoch * self.steps_per_epoch) * self.batch_size
            pools = self._assign_pools(epoch)
            for number, groups in enumerate(pools):
                num_rows = num_rows_of(groups)
                if skip < num_rows:
                    yield Pool(epoch, number, groups, skip, number == len(pools) - 1)
                skip = max(0, skip - num_rows)

    def _assign_pools(self, epoch: int) -> list[list[tuple[FeatureFile, int]]]:
        """Return the row groups of each pool: of K consecutive groups, each of K pools gets one."""
        groups = [
            (file, group) for file in self.files for group in range(file.metadata.num_row_groups)
        ]
        if not self.shuffle_rows:
            return [[group] for group in groups]
        largest = max(num_rows_of([group]) for group in groups)
        num_pools = ceil_div(len(groups), max(1, self.shuffle_rows // largest))
        random = np.random.default_rng((self.seed, epoch))
        pools: list[list[tuple[FeatureFile, int]]] = [[] for _ in range(num_pools)]
        for start in range(0, len(groups), num_pools):
            for pool, group in zip(
                random.permutation(num_pools), groups[start : start + num_pools], strict=False
            ):
                pools[pool].append(group)
        return pools

    def _load(self, pool: Pool) -> tuple[Rows, bool]:
        """Return a pool's permuted rows, and whether it is the last pool of its epoch."""
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
        self, file: FeatureFile, group: int
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return a row group's dense columns (R, N), ids (R, F) and labels (R,)."""
        dense, categorical = self.schema.dense_features, self.schema.categorical_features
        with file.open() as opened:
            table = opened.read_row_group(
                group, columns=[self.schema.label, *dense, *categorical], use_threads=False
            )
        dense_RN = np.empty((table.num_rows, len(dense)), np.float32)
        ids_RF = np.empty((table.num_rows, len(categorical)), np.int32)
        for matrix, names in ((dense_RN, dense), (ids_RF, categorical)):
            columns = [values_of(table[name]) for name in names]
            for start in range(0, table.num_rows, BLOCK_ROWS):
                block = slice(start, start + BLOCK_ROWS)
                for k, column in enumerate(columns):
                    matrix[block, k] = column[block]
        return dense_RN, ids_RF, values_of(table[self.schema.label])

    def _cut(self, pools: Iterable[tuple[Rows, bool]]) -> Iterator[Rows]:
        """Cut pools into batches; within an epoch, what is left of a pool begins the next batch."""
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


def values_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return the values of a column without nulls, as an array that shares its memory.

    `to_numpy` returns the same, but imports pandas.
    """
    chunks = [np.from_dlpack(chunk) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def num_rows_of(groups: list[tuple[FeatureFile, int]]) -> int:
    """Return the number of rows of row groups."""
    return sum(file.metadata.row_group(group).num_rows for file, group in groups)
