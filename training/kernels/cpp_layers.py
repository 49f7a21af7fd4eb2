"""Calls the kernels of linear_layers.cpp: a stack of linear layers, float32 on a CPU.

Shapes: B batch, I inputs and O outputs of a layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.kernels.compiler import call


class CompiledLinearStack(torch.autograd.Function):
    """The stack as one node of the autograd graph.

    Its arguments are inputs_BI, relu_last, bf16, the weights (O, I) of all layers, the biases (O,)
    of all layers. It returns (B, O of the last layer).
    """

    @staticmethod
    def forward(
        ctx: Any, inputs_BI: Tensor, relu_last: bool, bf16: bool, *parameters: Tensor
    ) -> Tensor:
        num_layers, B = len(parameters) // 2, len(inputs_BI)
        inputs_BI = inputs_BI.contiguous()
        weights = [weight.contiguous() for weight in parameters[:num_layers]]
        biases = parameters[num_layers:]
        widths = [inputs_BI.shape[1], *(len(bias) for bias in biases)]
        first_inputs = _empty_inputs(B, widths[0], bf16) if bf16 else inputs_BI
        layer_inputs = [first_inputs, *(_empty_inputs(B, width, bf16) for width in widths[1:-1])]
        outputs = inputs_BI.new_empty(B, widths[-1])
        call(
            "linear_stack_forward",
            bf16,
            num_layers,
            widths,
            B,
            inputs_BI,
            weights,
            biases,
            relu_last,
            layer_inputs,
            outputs,
        )
        ctx.widths, ctx.relu_last, ctx.bf16 = widths, relu_last, bf16
        ctx.save_for_backward(outputs, *weights, *layer_inputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BO: Tensor) -> tuple[Tensor | None, ...]:
        outputs, *rest = ctx.saved_tensors
        num_layers, B = len(rest) // 2, len(outputs)
        weights, layer_inputs = rest[:num_layers], rest[num_layers:]
        weight_grads = [torch.empty_like(weight) for weight in weights]
        bias_grads = [weight.new_empty(len(weight)) for weight in weights]
        inputs_grad = outputs.new_empty(B, ctx.widths[0]) if ctx.needs_input_grad[0] else None
        call(
            "linear_stack_backward",
            ctx.bf16,
            num_layers,
            ctx.widths,
            B,
            weights,
            ctx.relu_last,
            layer_inputs,
            outputs,
            grad_BO.contiguous(),
            weight_grads,
            bias_grads,
            inputs_grad,
        )
        return inputs_grad, None, None, *weight_grads, *bias_grads


def _empty_inputs(B: int, width: int, bf16: bool) -> Tensor:
    """Return memory for the inputs of a layer. bfloat16 rows have an even width."""
    if bf16:
        return torch.empty(B, width + width % 2, dtype=torch.bfloat16)
    return torch.empty(B, width)
