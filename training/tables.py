"""Embedding tables and their sparse optimizers: a step touches only the rows of its batch.

All tables are one contiguous weight, R = sum of the cardinalities rows of D floats. In training the looked-up rows are a leaf of
the graph (`rows_BFD.requires_grad_()`), and their gradient goes to one of the optimizers below; the weight itself takes none.

Shapes: B batch, F categorical fields, D embedding dim, R rows of all tables, U rows of one batch without repeats.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

EPS = 1e-10  # of row-wise Adagrad, as facebookresearch/dlrm has it


class EmbeddingTables(nn.Module):
    """One table of `cardinality` rows per categorical column. A table of n rows starts as U(-sqrt(1/n), sqrt(1/n))."""

    offsets: Tensor  # (F,), int64

    def __init__(self, cardinalities: Sequence[int], embedding_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        starts = [0, *accumulate(cardinalities)]
        weight_RD = torch.empty(starts[-1], embedding_dim)
        for start, num_rows in zip(starts, cardinalities, strict=False):
            bound = num_rows**-0.5
            weight_RD[start : start + num_rows].uniform_(-bound, bound, generator=generator)
        self.weight = nn.Parameter(weight_RD, requires_grad=False)
        self.register_buffer("offsets", torch.tensor(starts[:-1]), persistent=False)

    def forward(self, ids_BF: Tensor) -> Tensor:
        """The rows (B, F, D) of these ids, which are local to each column: 0 .. cardinality-1, int32 or int64."""
        return nn.functional.embedding(self.row_numbers(ids_BF), self.weight)

    def row_numbers(self, ids_BF: Tensor) -> Tensor:
        """Where the rows of these ids lie in the weight, int64."""
        return ids_BF + self.offsets


class TableOptimizer(nn.Module):
    """A sparse optimizer; a module, so that its state moves, is saved and is restored like weights are."""

    def step(self, tables: EmbeddingTables, ids_BF: Tensor, grad_BFD: Tensor, lr: float) -> None:
        """Update the rows of ids_BF, given the loss's gradient with respect to each of them; exact for rows that repeat."""
        raise NotImplementedError


class SparseSGD(TableOptimizer):
    """w_r -= lr * g_r, where g_r is the sum of the row's gradients in the batch."""

    @torch.no_grad()
    def step(self, tables: EmbeddingTables, ids_BF: Tensor, grad_BFD: Tensor, lr: float) -> None:
        add_rows(tables.weight, tables.row_numbers(ids_BF).flatten(), grad_BFD.flatten(0, 1) * -lr)


class RowwiseAdagrad(TableOptimizer):
    """s_r += mean_d(g_r^2); w_r -= lr * g_r / (sqrt(s_r) + eps): one accumulated square per row."""

    sums: Tensor  # (R,)

    def __init__(self, tables: EmbeddingTables) -> None:
        super().__init__()
        self.register_buffer("sums", tables.weight.new_zeros(len(tables.weight)))

    @torch.no_grad()
    def step(self, tables: EmbeddingTables, ids_BF: Tensor, grad_BFD: Tensor, lr: float) -> None:
        rows_U, where = torch.unique(tables.row_numbers(ids_BF).flatten(), return_inverse=True)
        grad_UD = add_rows(grad_BFD.new_zeros(len(rows_U), grad_BFD.shape[-1]), where, grad_BFD.flatten(0, 1))
        sum_U = self.sums[rows_U] + grad_UD.square().mean(dim=1)
        self.sums.index_copy_(0, rows_U, sum_U)
        rate_U = -lr / (sum_U.sqrt() + EPS)
        add_rows(tables.weight, rows_U, grad_UD * rate_U.unsqueeze(1))


def add_rows(target_RD: Tensor, rows_K: Tensor, values_KD: Tensor) -> Tensor:
    """target_RD[rows_K] += values_KD, repeats summed, in place.

    scatter_add_ with an expanded index: on CPU six times as fast as index_add_ on repeats, and the same bytes in every run.
    """
    return target_RD.scatter_add_(0, rows_K.unsqueeze(1).expand_as(values_KD), values_KD)
