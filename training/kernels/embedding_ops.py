"""Calls the kernels of embedding_ops.cpp: operations on embedding rows, float32 on a CPU.

Shapes: B batch, F columns, D embedding dim, R rows of all tables, V vectors (F, or F + 1 with a
bottom MLP), P = V (V - 1) / 2 pairs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.kernels import choice
from training.kernels.compiler import call
from training.kernels.read import POOLINGS, Read

READ_SHIFT = 40  # as in embedding_ops.cpp


def usable(*tensors: Tensor) -> bool:
    """Return whether the kernels of this file are available and take these tensors."""
    return (
        all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        and choice.operators() == "compiled"
    )


def embedding_lookup(weight_RD: Tensor, ids_BF: Tensor, offsets_F: Tensor) -> Tensor:
    """Return the rows weight_RD[offsets_F + ids_BF], (B, F, D).

    Args:
        weight_RD: Rows of all tables, contiguous.
        ids_BF: int32 or int64, from 0 in each column.
        offsets_F: int64, the first row of each column's table.

    Raises:
        IndexError: An id is outside its column's table.
    """
    ids_BF = _as_ids(ids_BF)
    R, D = weight_RD.shape
    rows_BFD = weight_RD.new_empty(*ids_BF.shape, D)
    id_arguments = (ids_BF, ids_BF.itemsize, offsets_F, R)
    position = call("embedding_lookup", weight_RD, *id_arguments, rows_BFD, *rows_BFD.shape)
    _check_ids(position, ids_BF)
    return rows_BFD


def distinct_rows(ids_BF: Tensor, offsets_F: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return what torch.unique(offsets_F + ids_BF, return_inverse=True) returns.

    Args:
        ids_BF: int32 or int64, from 0 in each column.
        offsets_F: int64, the first row of each column's table.
        num_rows: R.

    Returns:
        The distinct rows, ascending, (U,), and where in them the row of each id is, (B, F); int64.

    Raises:
        IndexError: An id is outside its column's table.
    """
    ids_BF = _as_ids(ids_BF)
    rows_U = torch.empty(ids_BF.numel(), dtype=torch.int64)
    positions_BF = torch.empty(ids_BF.shape, dtype=torch.int64)
    found = torch.empty(1, dtype=torch.int64)
    id_arguments = (ids_BF, ids_BF.itemsize, offsets_F, num_rows)
    position = call("distinct_rows", *id_arguments, rows_U, positions_BF, found, *ids_BF.shape)
    _check_ids(position, ids_BF)
    return rows_U[: int(found)], positions_BF


def step_sgd(
    weight_RD: Tensor, ids_BF: Tensor, offsets_F: Tensor, grad_BFD: Tensor, lr: float
) -> None:
    """Compute SparseSGD.step in place.

    Raises:
        IndexError: An id is outside its column's table. No weight has changed then.
    """
    ids_BF, grad_BFD = _as_ids(ids_BF), grad_BFD.contiguous()
    id_arguments = (ids_BF, ids_BF.itemsize, offsets_F, len(weight_RD))
    position = call("step_sgd", weight_RD, *id_arguments, grad_BFD, float(lr), *grad_BFD.shape)
    _check_ids(position, ids_BF)


def step_rowwise_adagrad(
    weight_RD: Tensor,
    squares_R: Tensor,
    ids_BF: Tensor,
    offsets_F: Tensor,
    grad_BFD: Tensor,
    lr: float,
    eps: float,
) -> None:
    """Compute RowwiseAdagrad.step in place; squares_R are its accumulators.

    Raises:
        IndexError: An id is outside its column's table. No weight has changed then.
    """
    ids_BF, grad_BFD = _as_ids(ids_BF), grad_BFD.contiguous()
    id_arguments = (ids_BF, ids_BF.itemsize, offsets_F, len(weight_RD))
    position = call(
        "step_rowwise_adagrad",
        weight_RD,
        squares_R,
        *id_arguments,
        grad_BFD,
        float(lr),
        float(eps),
        *grad_BFD.shape,
    )
    _check_ids(position, ids_BF)


def pooled_lookup(
    weight_RD: Tensor,
    spans: Sequence[tuple[int, int]],
    reads: Sequence[Read],
    vectors: Sequence[Tensor],
) -> None:
    """Write the vectors of each read, pooled where it has lists.

    Args:
        weight_RD: Rows of all tables, contiguous.
        spans: First row and end of each table.
        reads: What is read.
        vectors: For each read where its vectors are written, (N, D), rows contiguous.

    Raises:
        IndexError: An id is outside its table.
    """
    arguments = _read_arguments(spans, reads, vectors)
    place = call("pooled_lookup", weight_RD, arguments, len(reads), weight_RD.shape[1])
    _check_values(place, reads)


def pooled_step_sgd(
    weight_RD: Tensor,
    spans: Sequence[tuple[int, int]],
    reads: Sequence[Read],
    grads: Sequence[Tensor],
    lr: float,
) -> None:
    """Compute SparseSGD.step_reads in place; `grads` are the gradients of what was looked up.

    Raises:
        IndexError: An id is outside its table. No weight has changed then.
    """
    arguments = _read_arguments(spans, reads, grads)
    D = weight_RD.shape[1]
    place = call("pooled_step_sgd", weight_RD, arguments, len(reads), float(lr), D)
    _check_values(place, reads)


def pooled_step_rowwise_adagrad(
    weight_RD: Tensor,
    squares_R: Tensor,
    spans: Sequence[tuple[int, int]],
    reads: Sequence[Read],
    grads: Sequence[Tensor],
    lr: float,
    eps: float,
) -> None:
    """Compute RowwiseAdagrad.step_reads in place; squares_R are its accumulators.

    Raises:
        IndexError: An id is outside its table. No weight has changed then.
    """
    arguments = _read_arguments(spans, reads, grads)
    place = call(
        "pooled_step_rowwise_adagrad",
        weight_RD,
        squares_R,
        arguments,
        len(reads),
        float(lr),
        float(eps),
        weight_RD.shape[1],
    )
    _check_values(place, reads)


def _read_arguments(
    spans: Sequence[tuple[int, int]], reads: Sequence[Read], vectors: Sequence[Tensor]
) -> list[int]:
    """Return the fields of the `Read`s of embedding_ops.cpp; the caller keeps the tensors alive."""
    arguments: list[int] = []
    for read, vectors_ND in zip(reads, vectors, strict=True):
        first_row, end = spans[read.table]
        values, starts, weights = read.values, read.starts, read.weights
        assert values.dtype in (torch.int32, torch.int64), values.dtype
        assert starts is None or (starts.dtype == torch.int64 and starts.is_contiguous())
        assert weights is None or (weights.dtype == torch.float32 and weights.is_contiguous())
        assert vectors_ND.dtype == torch.float32
        assert vectors_ND.shape[1] == 1 or vectors_ND.stride(1) == 1
        arguments += [
            values.data_ptr(),
            values.itemsize,
            values.stride(0),
            0 if starts is None else starts.data_ptr(),
            0 if weights is None else weights.data_ptr(),
            0 if read.pooling is None else POOLINGS.index(read.pooling),
            first_row,
            end - first_row,
            len(vectors_ND),
            vectors_ND.data_ptr(),
            vectors_ND.stride(0),
        ]
    return arguments


def _check_values(place: int, reads: Sequence[Read]) -> None:
    """Raise IndexError for the value at `place`, unless it is -1: then all are valid."""
    if place >= 0:
        number, position = divmod(place, 1 << READ_SHIFT)
        read = reads[number]
        raise IndexError(
            f"id {read.values[position]}, value {position} of a read of table {read.table} of the"
            " batch, is outside its table"
        )


class PairDots(torch.autograd.Function):
    """Computes DotInteraction: (B, D) or None, and (B, F, D), -> (B, D + P) or (B, P)."""

    @staticmethod
    def forward(ctx: Any, bottom_BD: Tensor | None, rows_BFD: Tensor) -> Tensor:
        B, F, D = rows_BFD.shape
        rows_BFD = rows_BFD.contiguous()
        num_vectors, width = F, 0
        if bottom_BD is not None:
            bottom_BD = bottom_BD.contiguous()
            num_vectors, width = F + 1, D
        width += num_vectors * (num_vectors - 1) // 2
        outputs = rows_BFD.new_empty(B, width)
        call("pair_dots", bottom_BD, rows_BFD, outputs, B, F, D)
        ctx.save_for_backward(bottom_BD, rows_BFD)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        bottom_BD, rows_BFD = ctx.saved_tensors
        bottom_grad_BD = None if bottom_BD is None else torch.empty_like(bottom_BD)
        rows_grad_BFD = torch.empty_like(rows_BFD)
        call(
            "pair_dots_backward",
            grad.contiguous(),
            bottom_BD,
            rows_BFD,
            bottom_grad_BD,
            rows_grad_BFD,
            *rows_BFD.shape,
        )
        return bottom_grad_BD, rows_grad_BFD


def _as_ids(ids_BF: Tensor) -> Tensor:
    assert ids_BF.dtype in (torch.int32, torch.int64), ids_BF.dtype
    return ids_BF.contiguous()


def _check_ids(position: int, ids_BF: Tensor) -> None:
    """Raise IndexError for the id at `position`, unless it is -1: then all ids are valid."""
    if position >= 0:
        row, column = divmod(position, ids_BF.shape[1])
        raise IndexError(
            f"id {ids_BF[row, column]} of column {column} in row {row} of the batch "
            "is outside its table"
        )
