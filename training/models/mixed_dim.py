"""Mixed-dimension embeddings (Ginart et al. 2021, arXiv:1909.11810).

The more values a categorical feature has, the fewer floats its rows have.

Shapes: B batch, F categorical features, K features of one dim d, D embedding dim, n values of a
feature.
"""

from collections.abc import Sequence
from math import log2

import torch
from torch import Tensor, nn

from training.models.embedding_tables import EmbeddingTables, MakeTables
from training.models.grouped_embeddings import GroupedEmbeddings


class MixedDimTables(GroupedEmbeddings):
    """Tables whose rows have `column_dim` floats, projected to D by one matrix per feature.

    A feature whose rows have D floats has no projection.

    Args:
        cardinalities: Number of values of each feature.
        embedding_dim: D.
        generator: Draws the initial weights.
        make_tables: Makes the tables of one dim.
        alpha: Exponent of the power rule, see `column_dim`.
        threshold: Number of values above which rows have fewer than D floats.
    """

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
            column_dim(num_values, embedding_dim, alpha, threshold) for num_values in cardinalities
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
        return self.split_columns(ids_BF)

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        return self.merge_columns(
            [project(rows_BKd) for project, rows_BKd in zip(self.projections, rows, strict=True)]
        )

    def is_composed(self, table: int) -> bool:
        return isinstance(self.projections[self.place_of[table].group], Projections)

    def compose(self, table: int, rows: Sequence[Tensor]) -> Tensor:
        (rows_Nd,) = rows
        group, number = self.place_of[table]
        projections = self.projections[group]
        if not isinstance(projections, Projections):
            return rows_Nd
        weight_dD = projections.weight[number]
        if rows_Nd.requires_grad or torch.compiler.is_exporting():
            return rows_Nd @ weight_dD
        # One product for each row: a score must not depend on the number of rows, as the order of
        # the additions of one large product does.
        weight_NdD = weight_dD.expand(len(rows_Nd), -1, -1)
        return torch.bmm(rows_Nd.unsqueeze(1), weight_NdD).squeeze(1)


class Projections(nn.Module):
    """(B, K, d) -> (B, K, D): each feature is multiplied by a matrix (d, D) of its own.

    The initial weights are N(0, sqrt(1/d)). The sum of d products then has the variance of one
    float of a row, so the vectors start with the scale of a full table's.
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
        if torch.compiler.is_exporting():
            # The order of additions of one product of all features depends on the number of rows.
            # ONNX Runtime computes products with one constant matrix in one order.
            columns = zip(rows_BKd.unbind(1), self.weight.unbind(0), strict=True)
            return torch.stack([rows_Bd @ weight_dD for rows_Bd, weight_dD in columns], dim=1)
        return torch.bmm(rows_BKd.transpose(0, 1), self.weight).transpose(0, 1)


def column_dim(num_values: int, embedding_dim: int, alpha: float, threshold: int) -> int:
    """Return the number of floats of a row of a feature with n values, by the power rule.

    The rule is D up to `threshold` values and D (n / threshold)^-alpha above, rounded to a whole
    number and then to the nearest power of two. This is facebookresearch/dlrm's md_solver with one
    change: there the rule starts at the smallest feature, which leaves large features almost no
    floats when the smallest has few values.
    """
    dim = max(1, round(embedding_dim * (max(num_values, threshold) / threshold) ** -alpha))
    return int(2 ** round(log2(dim)))
