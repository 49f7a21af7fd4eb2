"""The compiled stack of linear layers (layers.cpp), for float32 tensors on a CPU."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.kernels.build import library

SIZE = ctypes.c_int64


class Layers(torch.autograd.Function):
    """(inputs_BI, relu_last, bf16, *weights (O, I), *biases (O,)) -> (B, O of the last)."""

    @staticmethod
    def forward(ctx: Any, inputs_BI: Tensor, relu_last: bool, bf16: bool, *parameters: Tensor) -> Tensor:
        num_layers, B = len(parameters) // 2, len(inputs_BI)
        inputs_BI, weights = inputs_BI.contiguous(), [weight.contiguous() for weight in parameters[:num_layers]]
        biases = parameters[num_layers:]
        widths = [inputs_BI.shape[1], *(len(bias) for bias in biases)]
        kept = [_between(B, width, bf16) for width in widths[:-1]] if bf16 else [inputs_BI, *(_between(B, w, bf16) for w in widths[1:-1])]
        outputs = inputs_BI.new_empty(B, widths[-1])
        _library().layers_forward(
            SIZE(bf16), SIZE(num_layers), (SIZE * len(widths))(*widths), SIZE(B), _pointer(inputs_BI),
            _pointers(weights), _pointers(biases), SIZE(relu_last), _pointers(kept), _pointer(outputs),
        )  # fmt: skip
        ctx.widths, ctx.relu_last, ctx.bf16 = widths, relu_last, bf16
        ctx.save_for_backward(outputs, *weights, *kept)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BO: Tensor) -> tuple[Tensor | None, ...]:
        outputs, *rest = ctx.saved_tensors
        widths, num_layers, grad_BO = ctx.widths, len(rest) // 2, grad_BO.contiguous()
        weights, kept = rest[:num_layers], rest[num_layers:]
        weight_grads = [torch.empty_like(weight) for weight in weights]
        bias_grads = [weight.new_empty(len(weight)) for weight in weights]
        inputs_grad = outputs.new_empty(len(outputs), widths[0]) if ctx.needs_input_grad[0] else None
        _library().layers_backward(
            SIZE(ctx.bf16), SIZE(num_layers), (SIZE * len(widths))(*widths), SIZE(len(outputs)), _pointers(weights), SIZE(ctx.relu_last),
            _pointers(kept), _pointer(outputs), _pointer(grad_BO), _pointers(weight_grads), _pointers(bias_grads), _pointer(inputs_grad),
        )  # fmt: skip
        return inputs_grad, None, None, *weight_grads, *bias_grads


def _between(B: int, width: int, bf16: bool) -> Tensor:
    """What a layer takes: bfloat16 in rows of even length, which the products want in pairs."""
    return torch.empty(B, width + width % 2, dtype=torch.bfloat16) if bf16 else torch.empty(B, width)


def _library() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None
    return loaded


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
