"""Batches of the feature files, each determined by the seed and the step alone.

Row groups are read once an epoch, rows are permuted in pools of bounded size, and the next pool is
read while one is trained on.

Shapes: R rows, N dense columns, F categorical fields.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from training.models.bags import Bag

TEACHER_SCORE = "score"  # the column of a file with the teachers' scores
POOLS_AHEAD = 1  # of at most shuffle_rows rows each, read by one thread
BLOCK_ROWS = 2048  # columns are copied to rows in blocks that stay in the cache


class Rows(NamedTuple):
    """R rows as contiguous matrices.

    Attributes:
        dense: The dense columns (R, N), float32.
        ids: The ids (R, F), int32, local to each column.
        labels: The labels (R,), float32, 0 or 1.
        bags: The ids of each feature with several values in each row, in the schema's order.
        weights: The sample weights (R,), float32; None if all are 1.
        teacher_scores: The scores of the teachers (R,), float32; None without distillation.
    """

    dense: Tensor
    ids: Tensor
    labels: Tensor
    bags: tuple[Bag, ...] = ()
    weights: Tensor | None = None
    teacher_scores: Tensor | None = None

    def part(self, start: int, stop: int) -> "Rows":
        """Return the rows start .. stop - 1, not copied."""
        end = min(stop, len(self.labels))
        return self._mapped(lambda tensor: tensor[start:stop], lambda bag: bag.part(start, end))

    def copy(self) -> "Rows":
        """Copy the rows."""
        return self._mapped(Tensor.clone, Bag.copy)

    def to(self, device: torch.device) -> "Rows":
        """Move the rows to a device."""
        return self._mapped(lambda tensor: tensor.to(device), lambda bag: bag.to(device))

    def _mapped(
        self, of_tensor: Callable[[Tensor], Tensor], of_bag: Callable[[Bag], Bag]
    ) -> "Rows":
        """Apply a function to each tensor, and another one to each bag."""
        return Rows(
            of_tensor(self.dense),
            of_tensor(self.ids),
            of_tensor(self.labels),
            tuple(map(of_bag, self.bags)),
            None if self.weights is None else of_tensor(self.weights),
            None if self.teacher_scores is None else of_tensor(self.teacher_scores),
        )

    @classmethod
    def concat(cls, parts: Sequence["Rows"]) -> "Rows":
        """Put the rows of several parts of a split one after the other; at least one part."""
        weights = [part.weights for part in parts if part.weights is not None]
        scores = [part.teacher_scores for part in parts if part.teacher_scores is not None]
        bags = zip(*(part.bags for part in parts), strict=True)
        return cls(
            torch.cat([part.dense for part in parts]),
            torch.cat([part.ids for part in parts]),
            torch.cat([part.labels for part in parts]),
            tuple(Bag.concat(of_feature) for of_feature in bags),
            torch.cat(weights) if weights else None,
            torch.cat(scores) if scores else None,
        )


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
        return Batch(self.rows.to(device), self.num_rows)


class FeatureFile(NamedTuple):
    """A Parquet file of features. It is open only while a row group is read.

    A log can have more days than a process may have open files.

    Attributes:
        path: The path of the file.
        metadata: Its metadata.
        teacher_scores: The file with the teachers' scores of its rows, in row groups of the same
            sizes; None without distillation.
    """

    path: Path
    metadata: pq.FileMetaData
    teacher_scores: "FeatureFile | None" = None

    @classmethod
    def of(cls, path: Path, teacher_scores: Path | None = None) -> "FeatureFile":
        """Read the metadata of a file, and of the one with the teachers' scores if there is one."""
        return cls(
            path,
            pq.read_metadata(path),
            None if teacher_scores is None else cls.of(teacher_scores),
        )

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
        teacher_scores: For each file that is read, the one with the teachers' scores of its rows;
            empty without distillation.
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
        teacher_scores: Sequence[Path] = (),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.schema, self.batch_size = schema, batch_size
        self.shuffle_rows, self.seed = shuffle_rows, seed
        self.rank, self.world_size = rank, world_size
        if last_days is not None:
            files = files[-last_days:]
        self.has_teachers = bool(teacher_scores)
        scores: Sequence[Path | None] = teacher_scores or [None] * len(files)
        self.files = [FeatureFile.of(*paths) for paths in zip(files, scores, strict=True)]

    @cached_property
    def num_rows(self) -> int:
        """The number of rows of an epoch, of all ranks."""
        return sum(file.metadata.num_rows for file in self.files)

    def some_dense(self) -> Tensor:
        """Return the dense columns (R, N) of the first row group of each file."""
        with_rows = [file for file in self.files if file.metadata.num_row_groups]
        return torch.cat([self._read(file, 0).dense for file in with_rows])

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
            num_wanted = (stop - epoch * self.steps_per_epoch) * self.batch_size
            pools = self._assign_pools(epoch)
            for number, groups in enumerate(pools):
                if num_wanted <= 0:
                    break
                num_rows = num_rows_of(groups)
                if skip < num_rows:
                    yield Pool(epoch, number, groups, skip, number == len(pools) - 1)
                skip = max(0, skip - num_rows)
                num_wanted -= num_rows

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
            len(self.schema.single_valued_features),
        )
        place_R = np.arange(num_rows)
        if self.shuffle_rows:
            np.random.default_rng((self.seed, pool.epoch, pool.number)).shuffle(place_R)
        has_weights = self.schema.sample_weight is not None
        pooled = Rows(
            torch.empty((num_rows, num_dense), dtype=torch.float32),
            torch.empty((num_rows, num_fields), dtype=torch.int32),
            torch.empty(num_rows, dtype=torch.float32),
            weights=torch.empty(num_rows, dtype=torch.float32) if has_weights else None,
            teacher_scores=torch.empty(num_rows, dtype=torch.float32)
            if self.has_teachers
            else None,
        )
        bags_of_groups: list[tuple[Bag, ...]] = []
        start = 0
        for file, group in pool.groups:
            rows = self._read(file, group)
            places = place_R[start : start + len(rows.labels)]
            for matrix, of_group in zip(_matrices(pooled), _matrices(rows), strict=True):
                matrix[places] = of_group
            bags_of_groups.append(rows.bags)
            start += len(places)
        if self.schema.list_features:
            row_at_place = torch.from_numpy(np.argsort(place_R))
            bags_of_features = zip(*bags_of_groups, strict=True)
            bags = tuple(Bag.concat(bags).take(row_at_place) for bags in bags_of_features)
            pooled = pooled._replace(bags=bags)
        return pooled.part(pool.skip, num_rows), pool.is_last

    def _read(self, file: FeatureFile, group: int) -> Rows:
        """Return the rows of a row group, in their order."""
        schema = self.schema
        dense, single_valued = schema.dense_features, schema.single_valued_features
        lists = [(one.name, one.list.weights) for one in schema.list_features if one.list]
        other = [schema.sample_weight, *chain.from_iterable(lists)]
        columns = [schema.label, *dense, *single_valued, *filter(None, other)]
        with file.open() as opened:
            table = opened.read_row_group(group, columns=columns, use_threads=False)
        dense_RN = np.empty((table.num_rows, len(dense)), np.float32)
        ids_RF = np.empty((table.num_rows, len(single_valued)), np.int32)
        for matrix, names in ((dense_RN, dense), (ids_RF, single_valued)):
            values = [values_of(table[name]) for name in names]
            for start in range(0, table.num_rows, BLOCK_ROWS):
                block = slice(start, start + BLOCK_ROWS)
                for k, column in enumerate(values):
                    matrix[block, k] = column[block]
        labels_R = values_of(table[schema.label]).astype(np.float32)
        bags = tuple(
            bag_of(table[ids], None if weights is None else table[weights])
            for ids, weights in lists
        )
        sample_weights = None
        if schema.sample_weight is not None:
            sample_weights = torch.tensor(values_of(table[schema.sample_weight]))
        teacher_scores = None
        if file.teacher_scores is not None:
            with file.teacher_scores.open() as opened:
                of_group = opened.read_row_group(group, columns=[TEACHER_SCORE], use_threads=False)
            teacher_scores = torch.tensor(values_of(of_group[TEACHER_SCORE]))
        return Rows(
            torch.from_numpy(dense_RN),
            torch.from_numpy(ids_RF),
            torch.from_numpy(labels_R),
            bags,
            sample_weights,
            teacher_scores,
        )

    def _cut(self, pools: Iterable[tuple[Rows, bool]]) -> Iterator[Rows]:
        """Cut pools into batches; within an epoch, what is left of a pool begins the next batch."""
        rest: list[Rows] = []
        for pool, is_last in pools:
            missing = self.batch_size - sum(len(rows.labels) for rows in rest)
            first = Rows.concat([*rest, pool.part(0, missing)])
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


class KeptPools(Batches):
    """Batches that keep the pools that were read last, for stretches of steps in any order."""

    NUM_KEPT = 3

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lock = threading.Lock()
        self.kept: dict[tuple[int, int], Rows] = {}

    def _load(self, pool: Pool) -> tuple[Rows, bool]:
        key = (pool.epoch, pool.number)
        with self.lock:  # a thread may read the next pool
            rows = self.kept.pop(key, None)
            if rows is None:
                rows, _ = super()._load(pool._replace(skip=0))
            self.kept[key] = rows  # as the latest one
            if len(self.kept) > self.NUM_KEPT:
                del self.kept[next(iter(self.kept))]
        return rows.part(pool.skip, len(rows.labels)), pool.is_last


def values_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return the values of a column without nulls, as an array that shares its memory.

    `to_numpy` returns the same, but imports pandas.
    """
    chunks = [np.from_dlpack(chunk) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def bag_of(ids: pa.ChunkedArray, weights: pa.ChunkedArray | None) -> Bag:
    """Return columns of lists without nulls as a bag.

    Args:
        ids: The ids, lists of int32.
        weights: Their weights, lists of float32 of the same lengths; None if all are 1.
    """
    chunks = ids.chunks
    starts, end = [np.zeros(1, np.int64)], 0
    for chunk in chunks:
        offsets = np.from_dlpack(chunk.offsets).astype(np.int64)
        starts.append(offsets[1:] - offsets[0] + end)
        end += int(offsets[-1] - offsets[0])
    return Bag(
        _values_of_lists(ids, np.int32),
        torch.from_numpy(np.concatenate(starts)),
        None if weights is None else _values_of_lists(weights, np.float32),
    )


def _values_of_lists(column: pa.ChunkedArray, dtype: type[np.generic]) -> Tensor:
    values = [np.from_dlpack(chunk.flatten()) for chunk in column.chunks]
    return torch.from_numpy(np.concatenate([np.empty(0, dtype), *values]))


def _matrices(rows: Rows) -> list[NDArray[Any]]:
    """Return what has an entry for each row, as arrays that share the memory of the tensors."""
    tensors = [rows.dense, rows.ids, rows.labels, rows.weights, rows.teacher_scores]
    return [tensor.numpy() for tensor in tensors if tensor is not None]


def num_rows_of(groups: list[tuple[FeatureFile, int]]) -> int:
    """Return the number of rows of row groups."""
    return sum(file.metadata.row_group(group).num_rows for file, group in groups)
