"""Embeddings: from the ids of a batch to one vector of D for each categorical feature.

Where every feature has one value and a table of its own, the ids are a matrix (B, F), and each
group of tables gives one tensor of rows. Where a feature has lists of ids, or features share a
table, a group is read feature by feature (training/models/reads.py).

Shapes: B batch, F categorical features, F1 of them with one value, T tables, D embedding dim.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.kernels.read import Read
from training.models.bags import Bag
from training.models.embedding_tables import EmbeddingTables, MakeTables, Tables
from training.models.reads import CategoricalInputs, Reads, pool


class Place(NamedTuple):
    """A table of a group.

    Attributes:
        group: Number of the group.
        table: Number of the table in the group.
    """

    group: int
    table: int


class Source(NamedTuple):
    """Where the rows of a feature are in what `Embeddings.lookup` returns.

    Attributes:
        tensor: Number of the tensor.
        column: The column of a tensor (B, columns, D); None for a tensor (V, D).
    """

    tensor: int
    column: int | None


class Embeddings(nn.Module):
    """Base class: makes the vectors of the categorical features from rows of embedding tables.

    A subclass has one or several groups of tables, each with its own ids and its own dim. A
    training step looks up the rows, makes them leaves of the autograd graph, and passes their
    gradients to the sparse optimizer of each group.

    A subclass is made for T tables, of one feature each. `read_by` then says which features read
    them, if there are lists or features that share a table. A subclass may leave features out: they
    have no vector, and their ids are not read.

    Attributes:
        tables: The groups, each a `Tables`.
        num_tables: T.
        inputs: The tables and lists of the features; None if each feature has one value and a table
            of its own.
    """

    tables: nn.ModuleList
    num_tables: int
    inputs: CategoricalInputs | None = None

    def read_by(self, inputs: CategoricalInputs) -> None:
        """Set the features that read the tables."""
        if inputs.is_plain:
            return
        self.inputs = inputs
        num_groups = len(self.tables)
        num_columns, num_lists = [0] * num_groups, [0] * num_groups
        planned: list[list[tuple[int, bool, int]]] = []  # group, is a column, number in the group
        for table, pooling in zip(inputs.tables, inputs.poolings, strict=True):
            is_column = table is not None and self._is_column(table, pooling)
            of_feature = []
            for group, _ in [] if table is None else self.places(table):
                counts = num_columns if is_column else num_lists
                of_feature.append((group, is_column, counts[group]))
                counts[group] += 1
            planned.append(of_feature)
        # tensors of lookup: for each group that of its columns, then one for each of its lists
        self.num_tensors = [1 + count for count in num_lists]
        firsts = [0, *accumulate(self.num_tensors)]
        self.sources = [
            [
                Source(firsts[group], number)
                if is_column
                else Source(firsts[group] + 1 + number, None)
                for group, is_column, number in of_feature
            ]
            for of_feature in planned
        ]
        # the number, among the features with lists, of the one that a tensor belongs to
        bag_of_feature = list(accumulate(map(bool, inputs.poolings), initial=0))
        self.bag_of_tensor = {
            source.tensor: bag_of_feature[feature]
            for feature, of_feature in enumerate(self.sources)
            for source in of_feature
            if source.column is None
        }

    def selections(self, ids_BF: Tensor, bags: Sequence[Bag] = ()) -> Sequence[Tensor | Reads]:
        """Return what a batch reads from each group of tables.

        Args:
            ids_BF: The ids of the features with one value, (B, F1), int32 or int64, from 0 in each
                table.
            bags: The lists of each other feature.
        """
        if self.inputs is None:
            return self.ids(ids_BF)
        reads = [Reads(ids_BF.shape[0], [], []) for _ in self.tables]
        singles, lists = iter(ids_BF.unbind(1)), iter(bags)
        for table, pooling in zip(self.inputs.tables, self.inputs.poolings, strict=True):
            bag = next(lists) if pooling else None
            values = next(singles) if bag is None else bag.values
            if table is None:
                continue
            is_column = self._is_column(table, pooling)
            for (group, number), part in zip(
                self.places(table), self.split_ids(table, values), strict=True
            ):
                if bag is None or not is_column:  # a list that is not pooled yet
                    read = Read(number, part)
                else:
                    read = Read(number, part, bag.starts, bag.weights, pooling)
                (reads[group].columns if is_column else reads[group].lists).append(read)
        return reads

    def lookup(self, selections: Sequence[Tensor | Reads]) -> list[Tensor]:
        """Read the rows that `selections` selected.

        Returns:
            For each group a tensor (B, tables of the group, dim of the group). Where features have
            lists or share tables: for each group what `Tables.read` returns.
        """
        rows: list[Tensor] = []
        for tables, selection in zip(self.tables, selections, strict=True):
            if isinstance(selection, Tensor):
                rows.append(tables(selection))
            else:
                assert isinstance(tables, Tables)
                rows += tables.read(selection)
        return rows

    def part(self, rows: Sequence[Tensor], bags: Sequence[Bag], part: slice) -> list[Tensor]:
        """Return what belongs to some rows of the batch, of what `lookup` returned."""
        if self.inputs is None:
            return [rows_k[part] for rows_k in rows]
        parts = []
        for number, rows_k in enumerate(rows):
            if number in self.bag_of_tensor:
                starts = bags[self.bag_of_tensor[number]].starts
                first, last = starts[part.start].item(), starts[part.stop].item()
                parts.append(rows_k[int(first) : int(last)])
            else:
                parts.append(rows_k[part])
        return parts

    def of_groups(self, grads: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Return for each group its tensors of what `lookup` returned, or of their gradients."""
        if self.inputs is None:
            return [[grad] for grad in grads]
        ends = list(accumulate(self.num_tensors))
        return [grads[end - n : end] for end, n in zip(ends, self.num_tensors, strict=True)]

    def vectors(self, rows: Sequence[Tensor], bags: Sequence[Bag] = ()) -> Tensor:
        """Turn the rows that `lookup` returned into one vector per feature, (B, F, D).

        A feature that is left out has none.

        Args:
            rows: The rows.
            bags: The lists that were looked up.
        """
        if self.inputs is None:
            return self.combine(rows)
        if self._is_in_order:
            return rows[0]
        vectors, lists = [], iter(bags)
        columns = {k: rows[k].unbind(1) for k in range(len(rows)) if k not in self.bag_of_tensor}
        for table, pooling, sources in zip(
            self.inputs.tables, self.inputs.poolings, self.sources, strict=True
        ):
            parts = [
                rows[tensor] if column is None else columns[tensor][column]
                for tensor, column in sources
            ]
            bag = next(lists) if pooling else None
            if table is None:
                continue
            vectors_ND = self.compose(table, parts)
            if bag is not None and not self._is_column(table, pooling):
                assert pooling is not None
                vectors_ND = pool(vectors_ND, bag.starts, bag.weights, pooling)
            vectors.append(vectors_ND)
        return torch.stack(vectors, dim=1)

    @property
    def _is_in_order(self) -> bool:
        """Whether the first tensor has the vectors of all features, in their order."""
        assert self.inputs is not None
        is_composed = (
            table is not None and self.is_composed(table) for table in self.inputs.tables
        )
        return len(self.num_tensors) == 1 and not any(is_composed)

    def _is_column(self, table: int, pooling: str | None) -> bool:
        """Whether a feature is looked up as one vector for each row of the batch."""
        return pooling is None or not self.is_composed(table) or self.pools_rows(pooling)

    def ids(self, ids_BF: Tensor) -> list[Tensor]:
        """Return the ids that select the rows of each group of tables.

        Returns:
            For each group a tensor (B, tables of the group), with ids from 0 in each table.
        """
        raise NotImplementedError

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        """Turn the rows that `lookup` returned for `ids` into one vector per feature, (B, F, D)."""
        raise NotImplementedError

    def places(self, table: int) -> list[Place]:
        """Return the tables of the groups that make up one of the T tables."""
        raise NotImplementedError

    def split_ids(self, table: int, ids: Tensor) -> list[Tensor]:
        """Return the ids in each of `places`, of the same shape."""
        return [ids]

    def pools_rows(self, pooling: str) -> bool:
        """Return whether pooled rows are composed to the same vector as is pooled from vectors.

        That is so for sums and means if `compose` is linear.
        """
        return pooling != "max"

    def is_composed(self, table: int) -> bool:
        """Return whether the vector of an id is anything but one row."""
        return False

    def compose(self, table: int, rows: Sequence[Tensor]) -> Tensor:
        """Make the vectors of N ids, (N, D), from their rows in each of `places`."""
        return rows[0]


class FullTables(Embeddings):
    """One table per categorical feature, with a row of D for each of its values."""

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        make_tables: MakeTables = EmbeddingTables,
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList([make_tables(cardinalities, embedding_dim, generator)])
        self.num_tables = len(cardinalities)

    def ids(self, ids_BF: Tensor) -> list[Tensor]:
        return [ids_BF]

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        return rows[0]

    def places(self, table: int) -> list[Place]:
        return [Place(0, table)]
