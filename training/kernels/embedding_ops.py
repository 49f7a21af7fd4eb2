"""The compiled operations on embedding rows (rows.cpp), for contiguous float32 tensors on a CPU.

Shapes: B batch, F columns, D embedding dim, R rows of all tables, V vectors, P = V (V - 1) / 2 pairs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.kernels.compiler import call, library


def usable(*tensors: Tensor) -> bool:
    """Whether these operations can take such tensors here."""
    return (
        all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and library() is not None
    )


def look_up(weight_RD: Tensor, ids_BF: Tensor, offsets_F: Tensor) -> Tensor:
    """weight_RD[offsets_F + ids_BF]: (B, F, D). Raises IndexError for an id outside its column's table."""
    ids_BF, (R, D) = _checked(ids_BF), weight_RD.shape
    rows_BFD = weight_RD.new_empty(*ids_BF.shape, D)
    _refuse(
        call(
            "look_up", weight_RD, ids_BF, ids_BF.itemsize, offsets_F, R, rows_BFD, *rows_BFD.shape
        ),
        ids_BF,
    )
    return rows_BFD


def step_sgd(
    weight_RD: Tensor, ids_BF: Tensor, offsets_F: Tensor, grad_BFD: Tensor, lr: float
) -> None:
    """SparseSGD.step, in place. Raises as look_up, and then nothing is written."""
    ids_BF, grad_BFD = _checked(ids_BF), grad_BFD.contiguous()
    bad = call(
        "step_sgd",
        weight_RD,
        ids_BF,
        ids_BF.itemsize,
        offsets_F,
        len(weight_RD),
        grad_BFD,
        float(lr),
        *grad_BFD.shape,
    )
    _refuse(bad, ids_BF)


def step_rowwise_adagrad(
    weight_RD: Tensor,
    squares_R: Tensor,
    ids_BF: Tensor,
    offsets_F: Tensor,
    grad_BFD: Tensor,
    lr: float,
    eps: float,
) -> None:
    """RowwiseAdagrad.step, in place. Raises as look_up, and then nothing is written."""
    ids_BF, grad_BFD = _checked(ids_BF), grad_BFD.contiguous()
    tables = (weight_RD, squares_R, ids_BF, ids_BF.itemsize, offsets_F, len(weight_RD))
    _refuse(
        call("step_rowwise_adagrad", *tables, grad_BFD, float(lr), float(eps), *grad_BFD.shape),
        ids_BF,
    )


class Dots(torch.autograd.Function):
    """(B, D) or None, (B, F, D) -> (B, D + P) or (B, P): DotInteraction's output."""

    @staticmethod
    def forward(ctx: Any, bottom_BD: Tensor | None, rows_BFD: Tensor) -> Tensor:
        B, F, D = rows_BFD.shape
        bottom_BD, rows_BFD = (
            None if bottom_BD is None else bottom_BD.contiguous(),
            rows_BFD.contiguous(),
        )
        V = F + (bottom_BD is not None)
        outputs = rows_BFD.new_empty(B, (D if bottom_BD is not None else 0) + V * (V - 1) // 2)
        call("dots", bottom_BD, rows_BFD, outputs, B, F, D)
        ctx.save_for_backward(bottom_BD, rows_BFD)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        bottom_BD, rows_BFD = ctx.saved_tensors
        bottom_grad, rows_grad = (
            None if bottom_BD is None else torch.empty_like(bottom_BD),
            torch.empty_like(rows_BFD),
        )
        call(
            "dots_backward",
            grad.contiguous(),
            bottom_BD,
            rows_BFD,
            bottom_grad,
            rows_grad,
            *rows_BFD.shape,
        )
        return bottom_grad, rows_grad


def _checked(ids_BF: Tensor) -> Tensor:
    assert ids_BF.dtype in (torch.int32, torch.int64), ids_BF.dtype
    return ids_BF.contiguous()


def _refuse(place: int, ids_BF: Tensor) -> None:
    """Of the first id without a row, -1 if there is none."""
    if place >= 0:
        row, column = divmod(place, ids_BF.shape[1])
        raise IndexError(
            f"id {ids_BF[row, column]} of column {column} in row {row} of the batch lies outside its table"
        )
