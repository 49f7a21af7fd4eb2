"""From a row's ids to a vector of D for each categorical column.

Shapes: B batch, F categorical fields, D embedding dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.embedding_tables import EmbeddingTables, MakeTables


class Embeddings(nn.Module):
    """What the columns' vectors are made of: rows of one or several `tables`, each with ids of its own and a dim of its own.

    A training step looks the rows up, makes them leaves of the graph, and hands their gradients to each tables' sparse optimizer.
    """

    tables: nn.ModuleList  # of Tables

    def ids(self, ids_BF: Tensor) -> list[Tensor]:
        """For each of `tables`, which of its rows are wanted: (B, its columns), local to each of them."""
        raise NotImplementedError

    def look_up(self, ids: Sequence[Tensor]) -> list[Tensor]:
        """Those rows of each of `tables`: (B, its columns, its dim)."""
        return [tables(ids_k) for tables, ids_k in zip(self.tables, ids, strict=True)]

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        """What look_up gave -> (B, F, D)."""
        raise NotImplementedError


class FullTables(Embeddings):
    """One row of D for each value of a column."""

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
