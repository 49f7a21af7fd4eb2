"""Sparse optimizers: a step touches only the rows of its batch, and a row that repeats is updated once by the sum of its gradients.

Shapes: B batch, F categorical fields, D embedding dim, R rows of all tables, U rows of one batch without repeats.
"""

from typing import Any

import torch
from torch import Tensor, nn

from training.kernels import embedding_ops as kernels
from training.kernels.memory_hints import on_large_pages
from training.models.embedding_tables import EmbeddingTables, Tables

EPS = 1e-10  # of row-wise Adagrad, as facebookresearch/dlrm has it


class EmbeddingOptimizer(nn.Module):
    """A sparse optimizer; a module, so that its state moves, is saved and is restored like weights are."""

    def before_look_up(self, tables: Tables, lr: float) -> None:
        """Of the rows that the next step with this rate is about."""

    def step(self, tables: Tables, ids_BF: Tensor, grad_BFD: Tensor, lr: float) -> None:
        """Update the rows of ids_BF, given the loss's gradient with respect to each of them; exact for rows that repeat."""
        raise NotImplementedError

    def reset_parameters(self, tables: Tables) -> None:
        """Forget all steps."""
        for state in self.buffers():
            state.zero_()

    def parts(self, tables: Tables) -> dict[str, Any]:
        """What there is beside each table's rows (Tables.parts), as k.name; not copied."""
        return {}


class SparseSGD(EmbeddingOptimizer):
    """w_r -= lr * g_r, where g_r is the sum of the row's gradients in the batch."""

    @torch.no_grad()
    def step(self, tables: EmbeddingTables, ids_BF: Tensor, grad_BFD: Tensor, lr: float) -> None:  # type: ignore[override]
        if kernels.usable(tables.weight, grad_BFD):
            kernels.step_sgd(tables.weight, ids_BF, tables.offsets, grad_BFD, lr)
        else:
            add_rows(
                tables.weight, tables.row_numbers(ids_BF).flatten(), grad_BFD.flatten(0, 1) * -lr
            )


class RowwiseAdagrad(EmbeddingOptimizer):
    """s_r += mean_d(g_r^2); w_r -= lr * g_r / (sqrt(s_r) + eps): one accumulated square per row."""

    sums: Tensor  # (R,)

    def __init__(self, tables: EmbeddingTables) -> None:
        super().__init__()
        self.register_buffer("sums", on_large_pages(tables.weight.new_zeros(len(tables.weight))))

    @torch.no_grad()
    def step(self, tables: EmbeddingTables, ids_BF: Tensor, grad_BFD: Tensor, lr: float) -> None:  # type: ignore[override]
        if kernels.usable(tables.weight, grad_BFD):
            kernels.step_rowwise_adagrad(
                tables.weight, self.sums, ids_BF, tables.offsets, grad_BFD, lr, EPS
            )
            return
        rows_U, grad_UD = sum_repeats(tables.row_numbers(ids_BF).flatten(), grad_BFD.flatten(0, 1))
        sum_U = self.sums[rows_U] + grad_UD.square().mean(dim=1)
        self.sums.index_copy_(0, rows_U, sum_U)
        rate_U = -lr / (sum_U.sqrt() + EPS)
        add_rows(tables.weight, rows_U, grad_UD * rate_U.unsqueeze(1))

    def parts(self, tables: Tables) -> dict[str, Any]:
        return {f"{k}.sums": self.sums[start:end] for k, (start, end) in enumerate(tables.spans)}


def sum_repeats(rows_K: Tensor, grad_KD: Tensor) -> tuple[Tensor, Tensor]:
    """The U distinct rows, and the sum of the gradients of each: (U,), (U, D)."""
    rows_U, where_K = torch.unique(rows_K, return_inverse=True)
    return rows_U, add_rows(grad_KD.new_zeros(len(rows_U), grad_KD.shape[1]), where_K, grad_KD)


def add_rows(target_RD: Tensor, rows_K: Tensor, values_KD: Tensor) -> Tensor:
    """target_RD[rows_K] += values_KD, repeats summed, in place.

    scatter_add_ with an expanded index: on CPU six times as fast as index_add_ on repeats, and the same bytes in every run.
    """
    return target_RD.scatter_add_(0, rows_K.unsqueeze(1).expand_as(values_KD), values_KD)


def make_embedding_optimizer(name: str, tables: Tables) -> EmbeddingOptimizer:
    """Tables that are spread over ranks bring their own, which steps where the rows are."""
    if not isinstance(tables, EmbeddingTables):
        own: EmbeddingOptimizer = tables.make_optimizer()
        return own
    return SparseSGD() if name == "sgd" else RowwiseAdagrad(tables)
