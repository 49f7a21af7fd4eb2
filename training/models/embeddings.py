"""Embeddings: from the ids of a batch to one vector of D for each categorical feature.

Shapes: B batch, F categorical features, D embedding dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.embedding_tables import EmbeddingTables, MakeTables


class Embeddings(nn.Module):
    """Base class: makes the vectors of the categorical features from rows of embedding tables.

    A subclass has one or several groups of tables, each with its own ids and its own dim. A
    training step looks up the rows, makes them leaves of the autograd graph, and passes their
    gradients to the sparse optimizer of each group.

    Attributes:
        tables: The groups, each a `Tables`.
    """

    tables: nn.ModuleList

    def ids(self, ids_BF: Tensor) -> list[Tensor]:
        """Return the ids that select the rows of each group of tables.

        Returns:
            For each group a tensor (B, tables of the group), with ids from 0 in each table.
        """
        raise NotImplementedError

    def lookup(self, ids: Sequence[Tensor]) -> list[Tensor]:
        """Read the rows that `ids` selected.

        Returns:
            For each group a tensor (B, tables of the group, dim of the group).
        """
        return [tables(ids_k) for tables, ids_k in zip(self.tables, ids, strict=True)]

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        """Turn the rows that `lookup` returned into one vector per feature, (B, F, D)."""
        raise NotImplementedError


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

    def ids(self, ids_BF: Tensor) -> list[Tensor]:
        return [ids_BF]

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        return rows[0]
