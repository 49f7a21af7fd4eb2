"""The compiled operations on embedding rows (rows.cpp), for contiguous float32 tensors on a CPU.

Shapes: B batch, F columns, D embedding dim, R rows of all tables, V vectors, P = V (V - 1) / 2 pairs.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.kernels.build import library

FLOAT, SIZE = ctypes.c_float, ctypes.c_int64


def usable(*tensors: Tensor) -> bool:
    """Whether these operations can take such tensors here."""
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors) and library() is not None


def look_up(weight_RD: Tensor, ids_BF: Tensor, offsets_F: Tensor) -> Tensor:
    """weight_RD[offsets_F + ids_BF]: (B, F, D). Raises IndexError for an id outside its column's table."""
    (R, D), (B, F) = weight_RD.shape, ids_BF.shape
    rows_BFD = weight_RD.new_empty(B, F, D)
    _call("look_up", weight_RD, *_ids(ids_BF, offsets_F, R), rows_BFD, SIZE(B), SIZE(F), SIZE(D), ids_BF=ids_BF)
    return rows_BFD


def step_sgd(weight_RD: Tensor, ids_BF: Tensor, offsets_F: Tensor, grad_BFD: Tensor, lr: float) -> None:
    """SparseSGD.step, in place."""
    B, F, D = grad_BFD.shape
    ids = _ids(ids_BF, offsets_F, len(weight_RD))
    _call("step_sgd", weight_RD, *ids, grad_BFD.contiguous(), FLOAT(lr), SIZE(B), SIZE(F), SIZE(D), ids_BF=ids_BF)


def step_rowwise_adagrad(
    weight_RD: Tensor, squares_R: Tensor, ids_BF: Tensor, offsets_F: Tensor, grad_BFD: Tensor, lr: float, eps: float
) -> None:
    """RowwiseAdagrad.step, in place."""
    B, F, D = grad_BFD.shape
    ids, sizes = _ids(ids_BF, offsets_F, len(weight_RD)), (SIZE(B), SIZE(F), SIZE(D))
    _call("step_rowwise_adagrad", weight_RD, squares_R, *ids, grad_BFD.contiguous(), FLOAT(lr), FLOAT(eps), *sizes, ids_BF=ids_BF)


class Dots(torch.autograd.Function):
    """(B, D) or None, (B, F, D) -> (B, D + P) or (B, P): DotInteraction's output."""

    @staticmethod
    def forward(ctx: Any, bottom_BD: Tensor | None, rows_BFD: Tensor) -> Tensor:
        B, F, D = rows_BFD.shape
        bottom_BD, rows_BFD = None if bottom_BD is None else bottom_BD.contiguous(), rows_BFD.contiguous()
        V = F + (bottom_BD is not None)
        outputs = rows_BFD.new_empty(B, (D if bottom_BD is not None else 0) + V * (V - 1) // 2)
        _call("dots", bottom_BD, rows_BFD, outputs, SIZE(B), SIZE(F), SIZE(D))
        ctx.save_for_backward(bottom_BD, rows_BFD)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        bottom_BD, rows_BFD = ctx.saved_tensors
        bottom_grad, rows_grad = None if bottom_BD is None else torch.empty_like(bottom_BD), torch.empty_like(rows_BFD)
        B, F, D = rows_BFD.shape
        _call("dots_backward", grad.contiguous(), bottom_BD, rows_BFD, bottom_grad, rows_grad, SIZE(B), SIZE(F), SIZE(D))
        return bottom_grad, rows_grad


def _ids(ids_BF: Tensor, offsets_F: Tensor, num_rows: int) -> tuple[Any, ...]:
    assert ids_BF.dtype in (torch.int32, torch.int64), ids_BF.dtype
    return ids_BF.contiguous(), SIZE(ids_BF.dtype == torch.int64), offsets_F, SIZE(num_rows)


def _call(name: str, *arguments: Any, ids_BF: Tensor | None = None) -> None:
    function = getattr(library(), name)
    function.restype = SIZE if ids_BF is not None else None
    bad = function(*(ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments))
    if ids_BF is not None and bad >= 0:
        row, column = divmod(bad, ids_BF.shape[1])
        raise IndexError(f"id {ids_BF[row, column]} of column {column} in row {row} of the batch lies outside its table")
