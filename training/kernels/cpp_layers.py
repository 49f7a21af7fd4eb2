"""The compiled stack of linear layers (layers.cpp), for float32 tensors on a CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.kernels.compiler import call


class Layers(torch.autograd.Function):
    """(inputs_BI, relu_last, bf16, *weights (O, I), *biases (O,)) -> (B, O of the last)."""

    @staticmethod
    def forward(
        ctx: Any, inputs_BI: Tensor, relu_last: bool, bf16: bool, *parameters: Tensor
    ) -> Tensor:
        num_layers, B = len(parameters) // 2, len(inputs_BI)
        inputs_BI, weights = (
            inputs_BI.contiguous(),
            [weight.contiguous() for weight in parameters[:num_layers]],
        )
        biases = parameters[num_layers:]
        widths = [inputs_BI.shape[1], *(len(bias) for bias in biases)]
        between = [_between(B, width, bf16) for width in widths[1:-1]]
        kept = [_between(B, widths[0], bf16) if bf16 else inputs_BI, *between]
        outputs = inputs_BI.new_empty(B, widths[-1])
        call(
            "layers_forward",
            bf16,
            num_layers,
            widths,
            B,
            inputs_BI,
            weights,
            biases,
            relu_last,
            kept,
            outputs,
        )
        ctx.widths, ctx.relu_last, ctx.bf16 = widths, relu_last, bf16
        ctx.save_for_backward(outputs, *weights, *kept)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BO: Tensor) -> tuple[Tensor | None, ...]:
        outputs, *rest = ctx.saved_tensors
        num_layers, B = len(rest) // 2, len(outputs)
        weights, kept = rest[:num_layers], rest[num_layers:]
        grads = (
            [torch.empty_like(weight) for weight in weights],
            [weight.new_empty(len(weight)) for weight in weights],
        )
        inputs_grad = outputs.new_empty(B, ctx.widths[0]) if ctx.needs_input_grad[0] else None
        of_layers = (ctx.bf16, num_layers, ctx.widths, B, weights, ctx.relu_last, kept)
        call("layers_backward", *of_layers, outputs, grad_BO.contiguous(), *grads, inputs_grad)
        return inputs_grad, None, None, *grads[0], *grads[1]


def _between(B: int, width: int, bf16: bool) -> Tensor:
    """What a layer takes: bfloat16 in rows of even length, which the products want in pairs."""
    return (
        torch.empty(B, width + width % 2, dtype=torch.bfloat16) if bf16 else torch.empty(B, width)
    )
