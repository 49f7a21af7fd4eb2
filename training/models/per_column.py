"""Embeddings whose width is chosen for each categorical feature, or that leave features out.

A row of d floats is extended to D by zeros, which take no memory in the table. The model is that of
full tables in which all but the first d floats of a feature's rows are zero; a search over dims can
therefore compare them in one model with shared weights (training/tune/dims.py), as OptEmbed does
(Lyu et al. 2022, arXiv:2208.04482).

Shapes: B batch, F categorical features, K features of one dim d, D embedding dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from training.models.embedding_tables import EmbeddingTables, MakeTables
from training.models.grouped_embeddings import GroupedEmbeddings


class PerColumnTables(GroupedEmbeddings):
    """Tables whose rows have a number of floats of their own, extended to D by zeros.

    Args:
        cardinalities: Number of values of each feature.
        embedding_dim: D.
        generator: Draws the initial weights, which are those of full tables.
        make_tables: Makes the tables of one dim.
        dims: d of each feature, at most D; 0 leaves the feature out. At least one is not 0.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        make_tables: MakeTables = EmbeddingTables,
        *,
        dims: Sequence[int],
    ) -> None:
        dims_of_groups = sorted({dim for dim in dims if dim}, reverse=True)
        groups = [[column for column, d in enumerate(dims) if d == dim] for dim in dims_of_groups]
        super().__init__(groups)
        self.num_tables = len(dims)
        self.embedding_dim = embedding_dim
        self.dims = list(dims)
        self.tables = nn.ModuleList(
            make_tables([cardinalities[column] for column in columns], dim, generator)
            for dim, columns in zip(dims_of_groups, groups, strict=True)
        )

    def ids(self, ids_BF: Tensor) -> list[Tensor]:
        return self.split_columns(ids_BF)

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        return self.merge_columns([self._extended(rows_BKd) for rows_BKd in rows])

    def is_composed(self, table: int) -> bool:
        return self.dims[table] < self.embedding_dim

    def pools_rows(self, pooling: str) -> bool:
        return True  # the sum, the mean and the maximum of zeros are zero

    def compose(self, table: int, rows: Sequence[Tensor]) -> Tensor:
        (rows_Nd,) = rows
        return self._extended(rows_Nd)

    def _extended(self, rows: Tensor) -> Tensor:
        """Append zeros to each row, up to D floats."""
        missing = self.embedding_dim - rows.shape[-1]
        return pad(rows, (0, missing)) if missing else rows
