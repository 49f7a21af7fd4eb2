"""Feature files to batches: row groups are read once, rows are permuted in a pool of bounded size, batches are slices of it."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from features.schema import Schema


class Rows(NamedTuple):
    """R rows as contiguous matrices."""

    dense: Tensor  # (R, N) float32
    ids: Tensor  # (R, F) int32, local to each column
    labels: Tensor  # (R,) float32, 0 or 1


class Batch(NamedTuple):
    """One rank's rows of a global batch, and how many all ranks have together."""

    rows: Rows
    num_rows: int


class Batches:
    """The batches of one pass over directory/*.parquet (written by the features stage), the same for the same arguments.

    shuffle_rows: rows permuted together (a whole number of row groups, at least one); 0 keeps file order. The row groups come in an
    order of their own too, so that a pool mixes days. seed: (seed, epoch), say. Each global batch has batch_size rows, the last one
    what is left; rank of world_size ranks gets its contiguous share of it, which may be empty.
    """

    def __init__(
        self, directory: Path, schema: Schema, *, batch_size: int, shuffle_rows: int, seed: tuple[int, ...], rank: int, world_size: int
    ) -> None:
        self.schema, self.batch_size, self.shuffle_rows, self.seed = schema, batch_size, shuffle_rows, seed
        self.rank, self.world_size = rank, world_size
        self.files = [pq.ParquetFile(path) for path in sorted(directory.glob("*.parquet"))]

    @cached_property
    def num_rows(self) -> int:
        """Rows of all files, this rank's and the others'."""
        return sum(file.metadata.num_rows for file in self.files)

    def some_dense(self) -> Tensor:
        """The dense columns (R, N) of the first row group of each file."""
        return torch.cat([self._read(file, 0).dense for file in self.files if file.num_row_groups])

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        random = np.random.default_rng(self.seed)
        for pool in self._pools(random):
            num_rows = len(pool.labels)
            order_R = torch.from_numpy(random.permutation(num_rows) if self.shuffle_rows else np.arange(num_rows))
            for start in range(0, num_rows, self.batch_size):
                order_B = order_R[start : start + self.batch_size]
                mine_B = order_B[share(len(order_B), self.rank, self.world_size)]
                yield Batch(Rows(*(values.index_select(0, mine_B) for values in pool)), len(order_B))

    def _pools(self, random: np.random.Generator) -> Iterator[Rows]:
        """Every row, a pool at a time; a pool is cut to whole batches, what is cut off goes into the next."""
        plan = self._plan(random)
        rest: list[Rows] = []
        for number, groups in enumerate(plan, start=1):
            rows = Rows(*map(torch.cat, zip(*rest, *(self._read(file, group) for file, group in groups), strict=True)))
            whole = len(rows.labels) if number == len(plan) else len(rows.labels) // self.batch_size * self.batch_size
            yield Rows(*(values[:whole] for values in rows))
            rest = [Rows(*(values[whole:].clone() for values in rows))]

    def _plan(self, random: np.random.Generator) -> list[list[tuple[pq.ParquetFile, int]]]:
        """The row groups of each pool."""
        groups = [(file, group) for file in self.files for group in range(file.num_row_groups)]
        if self.shuffle_rows:
            groups = [groups[k] for k in random.permutation(len(groups))]
        plan: list[list[tuple[pq.ParquetFile, int]]] = []
        num_rows = 0
        for file, group in groups:
            num_rows += file.metadata.row_group(group).num_rows
            if not plan or num_rows > self.shuffle_rows:
                plan.append([])
                num_rows = file.metadata.row_group(group).num_rows
            plan[-1].append((file, group))
        return plan

    def _read(self, file: pq.ParquetFile, group: int) -> Rows:
        """A row group, column by column into row-major matrices."""
        dense, categorical = self.schema.dense_features, self.schema.categorical_features
        table = file.read_row_group(group, columns=[self.schema.label, *dense, *categorical])
        dense_RN = np.empty((table.num_rows, len(dense)), np.float32)
        ids_RF = np.empty((table.num_rows, len(categorical)), np.int32)
        for matrix, names in ((dense_RN, dense), (ids_RF, categorical)):
            for k, name in enumerate(names):
                matrix[:, k] = table[name].to_numpy()
        labels_R = torch.from_numpy(table[self.schema.label].to_numpy().astype(np.float32))
        return Rows(torch.from_numpy(dense_RN), torch.from_numpy(ids_RF), labels_R)


def share(num_rows: int, rank: int, world_size: int) -> slice:
    """The contiguous part of num_rows rows that rank takes; the parts of all ranks are disjoint, complete and differ by one row at most."""
    return slice(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)
