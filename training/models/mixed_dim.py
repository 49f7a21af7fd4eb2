"""Mixed-dimension embeddings (Ginart et al. 2021, arXiv:1909.11810): the more values a column has, the fewer numbers each of them gets.

Shapes: B batch, F categorical fields, K columns of one dim d, D embedding dim, n values of a column.
"""

from collections.abc import Sequence
from math import log2

import torch
from torch import Tensor, nn

from training.models.embedding_tables import EmbeddingTables, MakeTables
from training.models.grouped_embeddings import GroupedEmbeddings


class MixedDimTables(GroupedEmbeddings):
    """Rows of d (columns_dim), projected to D by a matrix of each column's own; a column of d = D has none."""

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        make_tables: MakeTables = EmbeddingTables,
        *,
        alpha: float,
        threshold: int,
    ) -> None:
        column_dims = [
            column_dim(values, embedding_dim, alpha, threshold) for values in cardinalities
        ]
        dims = sorted(set(column_dims), reverse=True)
        groups = [[column for column, d in enumerate(column_dims) if d == dim] for dim in dims]
        super().__init__(groups)
        self.tables = nn.ModuleList(
            make_tables([cardinalities[column] for column in columns], dim, generator)
            for dim, columns in zip(dims, groups, strict=True)
        )
        self.projections = nn.ModuleList(
            nn.Identity()
            if dim == embedding_dim
            else Projections(len(columns), dim, embedding_dim, generator)
            for dim, columns in zip(dims, groups, strict=True)
        )

    def ids(self, ids_BF: Tensor) -> list[Tensor]:
        return self.split(ids_BF)

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        return self.in_order(
            [project(rows_k) for project, rows_k in zip(self.projections, rows, strict=True)]
        )


class Projections(nn.Module):
    """(B, K, d) -> (B, K, D), each column by its own matrix.

    Initial weights N(0, sqrt(1/d)): the sum of d products then has the variance of one number of a row, so that a column's vectors
    start as large as a full table's.
    """

    def __init__(
        self, num_columns: int, dim: int, embedding_dim: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        weight_KdD = torch.empty(num_columns, dim, embedding_dim).normal_(
            std=dim**-0.5, generator=generator
        )
        self.weight = nn.Parameter(weight_KdD)

    def forward(self, rows_BKd: Tensor) -> Tensor:
        return torch.bmm(rows_BKd.transpose(0, 1), self.weight).transpose(0, 1)


def column_dim(num_values: int, embedding_dim: int, alpha: float, threshold: int) -> int:
    """The power rule: D up to `threshold` values, D (n / threshold)^-alpha above, as a power of two.

    facebookresearch/dlrm's md_solver, including its way of rounding (to a whole number, then to the nearest power of two), but that there
    the rule starts from the smallest column, whose few values leave the others next to nothing.
    """
    dim = max(1, round(embedding_dim * (max(num_values, threshold) / threshold) ** -alpha))
    return int(2 ** round(log2(dim)))
