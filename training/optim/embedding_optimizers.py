"""Sparse optimizers of the embedding tables.

A step changes only the rows of its batch. A row that repeats in the batch is updated once, by the
sum of its gradients.

Shapes: B batch, F tables, D embedding dim, R rows of all tables, K = B F rows of a batch, U
distinct rows of a batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.kernels import embedding_ops as kernels
from training.kernels.memory_hints import on_large_pages
from training.kernels.read import Read
from training.models.embedding_tables import EmbeddingTables, Tables
from training.models.reads import Reads

EPS = 1e-10  # of row-wise Adagrad, as in facebookresearch/dlrm


class EmbeddingOptimizer(nn.Module):
    """Base class of the sparse optimizers.

    It is a module, so that its state is moved between devices, saved and restored as weights are.
    """

    def before_lookup(self, tables: Tables, lr: float) -> None:
        """Announce the learning rate of the step whose rows are looked up next.

        Sharded tables need it before the lookup; others ignore it.
        """

    def step(self, tables: Tables, ids_BF: Tensor, grad_BFD: Tensor, lr: float) -> None:
        """Update the rows of a batch.

        Args:
            tables: The tables.
            ids_BF: The ids that were looked up.
            grad_BFD: Gradient of the loss with respect to each looked-up row.
            lr: Learning rate.
        """
        raise NotImplementedError

    def step_reads(self, tables: Tables, reads: Reads, grads: Sequence[Tensor], lr: float) -> None:
        """Update the rows of a batch whose features have lists or share tables.

        A row is updated once, by the sum of its gradients from all features.

        Args:
            tables: The tables.
            reads: What was looked up.
            grads: Gradients of the loss with respect to what `tables.read` returned.
            lr: Learning rate.
        """
        raise NotImplementedError

    def reset_parameters(self, tables: Tables) -> None:
        """Set the state to zero, as before the first step."""
        for state in self.buffers():
            state.zero_()

    def parts(self, tables: Tables) -> dict[str, Any]:
        """Return the state of each table k under the name `k.NAME`, without a copy.

        The first dimension of each tensor is that of the table's rows, as in `Tables.parts`.
        """
        return {}


class WholeTablesOptimizer(EmbeddingOptimizer):
    """Base class of the optimizers of whole tables: a compiled operator, or one of PyTorch."""

    @torch.no_grad()
    def step_reads(  # type: ignore[override]
        self, tables: EmbeddingTables, reads: Reads, grads: Sequence[Tensor], lr: float
    ) -> None:
        if kernels.usable(tables.weight, *grads):
            each_read, of_reads = zip(*reads.split(grads), strict=True)
            self._pooled_step(tables, each_read, of_reads, lr)
        else:
            self._step(tables, *tables.value_gradients(reads, grads), lr)

    def _pooled_step(
        self, tables: EmbeddingTables, reads: Sequence[Read], grads: Sequence[Tensor], lr: float
    ) -> None:
        """Call the compiled operator, with the gradient of the vectors of each read, (N, D)."""
        raise NotImplementedError

    def _step(self, tables: EmbeddingTables, rows_K: Tensor, grad_KD: Tensor, lr: float) -> None:
        """Update rows of the tables, which may repeat, by PyTorch's operators."""
        raise NotImplementedError


class SparseSGD(WholeTablesOptimizer):
    """w_r -= lr * g_r, where g_r is the sum of the gradients of row r in the batch."""

    @torch.no_grad()
    def step(self, tables: EmbeddingTables, ids_BF: Tensor, grad_BFD: Tensor, lr: float) -> None:  # type: ignore[override]
        if kernels.usable(tables.weight, grad_BFD):
            kernels.step_sgd(tables.weight, ids_BF, tables.offsets, grad_BFD, lr)
            return
        self._step(tables, tables.row_numbers(ids_BF).flatten(), grad_BFD.flatten(0, 1), lr)

    def _pooled_step(
        self, tables: EmbeddingTables, reads: Sequence[Read], grads: Sequence[Tensor], lr: float
    ) -> None:
        kernels.pooled_step_sgd(tables.weight, tables.spans, reads, grads, lr)

    def _step(self, tables: EmbeddingTables, rows_K: Tensor, grad_KD: Tensor, lr: float) -> None:
        add_rows(tables.weight, rows_K, grad_KD * -lr)


class RowwiseAdagrad(WholeTablesOptimizer):
    """s_r += mean_d(g_r^2); w_r -= lr * g_r / (sqrt(s_r) + eps), with one accumulator s per row.

    g_r is the sum of the gradients of row r in the batch. The formula is that of
    facebookresearch/dlrm and FBGEMM.

    Attributes:
        sums: (R,) float32, the accumulators s.
    """

    sums: Tensor

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
        self._step(tables, tables.row_numbers(ids_BF).flatten(), grad_BFD.flatten(0, 1), lr)

    def _pooled_step(
        self, tables: EmbeddingTables, reads: Sequence[Read], grads: Sequence[Tensor], lr: float
    ) -> None:
        kernels.pooled_step_rowwise_adagrad(
            tables.weight, self.sums, tables.spans, reads, grads, lr, EPS
        )

    def _step(self, tables: EmbeddingTables, rows_K: Tensor, grad_KD: Tensor, lr: float) -> None:
        rows_U, grad_UD = sum_repeats(rows_K, grad_KD)
        sum_U = self.sums[rows_U] + grad_UD.square().mean(dim=1)
        self.sums.index_copy_(0, rows_U, sum_U)
        rate_U = -lr / (sum_U.sqrt() + EPS)
        add_rows(tables.weight, rows_U, grad_UD * rate_U.unsqueeze(1))

    def parts(self, tables: Tables) -> dict[str, Any]:
        return {f"{k}.sums": self.sums[start:end] for k, (start, end) in enumerate(tables.spans)}


def sum_repeats(rows_K: Tensor, grad_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the gradients of rows that repeat.

    Returns:
        The distinct rows (U,) in ascending order, and the sum of the gradients of each (U, D).
    """
    rows_U, position_K = torch.unique(rows_K, return_inverse=True)
    zeros_UD = grad_KD.new_zeros(len(rows_U), grad_KD.shape[1])
    return rows_U, add_rows(zeros_UD, position_K, grad_KD)


def add_rows(target_RD: Tensor, rows_K: Tensor, values_KD: Tensor) -> Tensor:
    """Add values to rows of the target, in place: target_RD[rows_K] += values_KD, repeats summed.

    It uses scatter_add_ with an expanded index: on a CPU this takes a sixth of the time of
    index_add_ when rows repeat, and gives the same bytes in every run.
    """
    return target_RD.scatter_add_(0, rows_K.unsqueeze(1).expand_as(values_KD), values_KD)


def update_tables(
    optimizer: EmbeddingOptimizer,
    tables: Tables,
    selection: Tensor | Reads,
    grads: Sequence[Tensor],
    lr: float,
) -> None:
    """Update the rows of a group of tables.

    Args:
        optimizer: The optimizer of the group.
        tables: The group.
        selection: What `Embeddings.selections` returned for the group.
        grads: The gradients of what was looked up, as `Embeddings.of_groups` returns them.
        lr: Learning rate.
    """
    if isinstance(selection, Tensor):
        (grad_BFD,) = grads
        optimizer.step(tables, selection, grad_BFD, lr)
    else:
        optimizer.step_reads(tables, selection, grads, lr)


def make_embedding_optimizer(name: str, tables: Tables) -> EmbeddingOptimizer:
    """Return the optimizer that `train.embedding_optimizer.name` names.

    Sharded tables return an optimizer of their own, which runs where the rows are.
    """
    if not isinstance(tables, EmbeddingTables):
        optimizer: EmbeddingOptimizer = tables.make_optimizer()
        return optimizer
    return SparseSGD() if name == "sgd" else RowwiseAdagrad(tables)
