"""A stack of linear layers with ReLUs on a CPU, as one node of the autograd graph.

It is computed by the compiled kernels or by oneDNN, as training/kernels/choice.py says. PyTorch
itself uses MKL for fp32 products, which on some CPUs reaches less than half the speed of oneDNN
(docs/adr/0020-compiled-kernels.md).

Precision bf16 means: both factors of each product are rounded to bfloat16, sums are float32, and
the output of a hidden layer is bfloat16. Weights, their gradients and the output of the last layer
stay float32.

A NaN stays NaN through every ReLU, as in PyTorch. Otherwise lost weights would go unnoticed.

Shapes: B batch, I inputs and O outputs of a layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.kernels import choice
from training.kernels.choice import Precision
from training.kernels.compiler import call
from training.kernels.cpp_layers import CompiledLinearStack

# a product of fewer multiplications is faster with MKL, whose calls cost less
MIN_ONEDNN_MACS = 1 << 20
# oneDNN computes the gradient of a weight faster as its transpose if the layer is this much wider
TRANSPOSE_RATIO = 4


def usable(inputs_BI: Tensor, precision: Precision) -> bool:
    """Return whether `linear_stack` takes these inputs: float32, on a CPU, with an implementation.

    PyTorch's own layers are not in this file.
    """
    return (
        inputs_BI.device.type == "cpu"
        and inputs_BI.dtype == torch.float32
        and choice.layers(inputs_BI.shape[0], precision) != "pytorch"
    )


def linear_stack(
    inputs_BI: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    relu_last: bool,
    precision: Precision,
) -> Tensor:
    """Compute x -> relu(x W^T + b), layer by layer.

    Args:
        inputs_BI: Inputs of the first layer; see `usable`.
        weights: (O, I) of each layer, float32.
        biases: (O,) of each layer, float32.
        relu_last: Whether a ReLU follows the last layer too.
        precision: Of the products.

    Returns:
        (B, O of the last layer), float32.
    """
    if choice.layers(len(inputs_BI), precision) == "compiled":
        return CompiledLinearStack.apply(  # type: ignore[no-any-return, no-untyped-call]
            inputs_BI, relu_last, precision == "bf16", *weights, *biases
        )
    parameters = (*weights, *biases)
    outputs: Tensor = OneDNNLinearStack.apply(inputs_BI, relu_last, precision, *parameters)  # type: ignore
    return outputs


class OneDNNLinearStack(torch.autograd.Function):
    """The stack by oneDNN, with the arguments of CompiledLinearStack but for `precision`."""

    @staticmethod
    def forward(
        ctx: Any, inputs_BI: Tensor, relu_last: bool, precision: Precision, *parameters: Tensor
    ) -> Tensor:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        num_layers = len(parameters) // 2
        weights = [weight.to(dtype) for weight in parameters[:num_layers]]
        biases = [bias.to(dtype) for bias in parameters[num_layers:]]
        activations = [inputs_BI.to(dtype)]
        for k, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
            outputs_BO = _linear(activations[-1], weight, bias)
            if relu_last or k < num_layers:
                outputs_BO.relu_()
            activations.append(outputs_BO)
        ctx.relu_last = relu_last
        ctx.save_for_backward(*weights, *activations)
        return activations[-1].float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BO: Tensor) -> tuple[Tensor | None, ...]:
        num_layers = len(ctx.saved_tensors) // 2
        weights, activations = ctx.saved_tensors[:num_layers], ctx.saved_tensors[num_layers:]
        weight_grads: list[Tensor] = []
        bias_grads: list[Tensor] = []
        # the kernel of _relu_backward needs contiguous rows
        grad_BO = grad_BO.to(weights[0].dtype, memory_format=torch.contiguous_format)
        for k in reversed(range(num_layers)):
            has_relu = ctx.relu_last or k < num_layers - 1
            grad_BO, bias_grad_O = _relu_backward(grad_BO, activations[k + 1] if has_relu else None)
            bias_grads.append(bias_grad_O)
            weight_grads.append(_transposed_product(grad_BO, activations[k]).float())
            if k or ctx.needs_input_grad[0]:
                grad_BO = _product(grad_BO, weights[k])
        inputs_grad = grad_BO.float() if ctx.needs_input_grad[0] else None
        return inputs_grad, None, None, *reversed(weight_grads), *reversed(bias_grads)


def _relu_backward(grad_BO: Tensor, activations_BO: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the gradient before a ReLU, and its column sums (O,) in float32.

    Args:
        grad_BO: The gradient after the ReLU. It may be overwritten.
        activations_BO: What the ReLU returned; None if there is no ReLU.
    """
    if grad_BO.dtype == torch.bfloat16 and choice.operators() == "compiled":
        sums_O = torch.empty(grad_BO.shape[1])
        call("relu_backward", grad_BO, activations_BO, sums_O, *grad_BO.shape)
        return grad_BO, sums_O
    if activations_BO is not None:
        grad_BO = torch.ops.aten.threshold_backward(grad_BO, activations_BO, 0)
    return grad_BO, grad_BO.sum(0).float()


def _is_small(num_rows: int, weight_OI: Tensor) -> bool:
    return num_rows * weight_OI.numel() < MIN_ONEDNN_MACS


def _linear(inputs_BI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """Return x W^T + b, (B, O).

    oneDNN could apply the ReLU too, but its ReLU turns NaN into 0.
    """
    is_fp32 = weight_OI.dtype == torch.float32
    if not inputs_BI.numel() or (is_fp32 and _is_small(len(inputs_BI), weight_OI)):
        return torch.addmm(bias_O, inputs_BI, weight_OI.t())
    return _onednn_linear(inputs_BI, weight_OI, bias_O)


def _product(grad_BO: Tensor, weight_OI: Tensor) -> Tensor:
    """Return grad W, (B, I)."""
    if not grad_BO.numel() or _is_small(len(grad_BO), weight_OI):
        return grad_BO @ weight_OI
    return _onednn_linear(grad_BO, weight_OI.t(), None)


def _transposed_product(grad_BO: Tensor, inputs_BI: Tensor) -> Tensor:
    """Return grad^T x, (O, I)."""
    transpose = grad_BO.shape[1] > TRANSPOSE_RATIO * inputs_BI.shape[1]
    left, right = (inputs_BI, grad_BO) if transpose else (grad_BO, inputs_BI)
    num_macs = len(grad_BO) * left.shape[1] * right.shape[1]
    if grad_BO.dtype == torch.bfloat16 or num_macs < MIN_ONEDNN_MACS:
        product = left.t() @ right
    else:
        product = _onednn_linear(left.t(), right.t(), None)
    return product.t() if transpose else product


def _onednn_linear(inputs_BI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    outputs_BO: Tensor = torch.ops.mkldnn._linear_pointwise(
        inputs_BI, weight_OI, bias_O, "none", [], ""
    )
    return outputs_BO
