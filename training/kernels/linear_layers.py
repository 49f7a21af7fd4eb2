"""A stack of linear layers with ReLUs on a CPU, all of it one node of the graph: compiled here, or by oneDNN.

torch hands fp32 products to MKL, which on CPUs that are not Intel's reaches less than half of what oneDNN does (docs/decisions.md).
Precision bf16: both factors of each product are rounded to bfloat16, sums are float32, what comes out of a hidden layer is bfloat16;
weights, their gradients and the last layer's output stay float32.

Shapes: B batch, I inputs and O outputs of a layer.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.kernels.compiler import call, library
from training.kernels.cpp_layers import Layers

Precision = Literal["fp32", "bf16"]
COMPILED_ROWS = {
    "fp32": math.inf,
    "bf16": 1024,
}  # up to so many our loops are faster than oneDNN's, which take 14 us to start
ONEDNN_MACS = 1 << 20  # below so many multiplications MKL's smaller overhead wins
SWAP = 4  # times as many outputs as inputs: oneDNN writes the weight's gradient faster as its transpose


def usable(inputs_BI: Tensor) -> bool:
    """Whether `layers` can compute this: float32 on a CPU, with a torch that was built with oneDNN."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and inputs_BI.device.type == "cpu" and inputs_BI.dtype == torch.float32


def bf16_supported() -> bool:
    """Whether this CPU has the instructions without which bf16 is not worth its name."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def layers(
    inputs_BI: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    relu_last: bool,
    precision: Precision,
) -> Tensor:
    """x -> relu(x W^T + b), layer by layer; weights (O, I) and biases (O,) float32. Returns (B, O of the last) float32."""
    if len(inputs_BI) <= COMPILED_ROWS[precision] and library() is not None:
        return Layers.apply(inputs_BI, relu_last, precision == "bf16", *weights, *biases)  # type: ignore[no-any-return, no-untyped-call]
    return OneDNNLayers.apply(inputs_BI, relu_last, precision, *weights, *biases)  # type: ignore[no-any-return, no-untyped-call]


class OneDNNLayers(torch.autograd.Function):
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
            activations.append(
                _linear(activations[-1], weight, bias, relu=relu_last or k < num_layers)
            )
        ctx.relu_last = relu_last
        ctx.save_for_backward(*weights, *activations)
        return activations[-1].float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BO: Tensor) -> tuple[Tensor | None, ...]:
        num_layers = len(ctx.saved_tensors) // 2
        weights, activations = ctx.saved_tensors[:num_layers], ctx.saved_tensors[num_layers:]
        grads: list[Tensor] = []
        grad_BO = grad_BO.to(
            weights[0].dtype, memory_format=torch.contiguous_format
        )  # _through_relu takes rows as they lie
        bias_grads = []
        for k in reversed(range(num_layers)):
            grad_BO, bias_grad_O = _through_relu(
                grad_BO, activations[k + 1] if ctx.relu_last or k < num_layers - 1 else None
            )
            bias_grads.append(bias_grad_O)
            grads.append(_transposed_product(grad_BO, activations[k]).float())
            if k or ctx.needs_input_grad[0]:
                grad_BO = _product(grad_BO, weights[k])
        return (
            grad_BO.float() if ctx.needs_input_grad[0] else None,
            None,
            None,
            *reversed(grads),
            *reversed(bias_grads),
        )


def _through_relu(grad_BO: Tensor, made_BO: Tensor | None) -> tuple[Tensor, Tensor]:
    """What of a gradient, which is overwritten, passes a ReLU that made `made_BO` (None: there is none), and its column sums in float32."""
    if grad_BO.dtype == torch.bfloat16 and library() is not None:
        sums_O = torch.empty(grad_BO.shape[1])
        call("relu_backward", grad_BO, made_BO, sums_O, *grad_BO.shape)
        return grad_BO, sums_O
    if made_BO is not None:
        grad_BO = torch.ops.aten.threshold_backward(grad_BO, made_BO, 0)
    return grad_BO, grad_BO.sum(0).float()


def _small(rows: int, weight_OI: Tensor) -> bool:
    return rows * weight_OI.numel() < ONEDNN_MACS


def _linear(inputs_BI: Tensor, weight_OI: Tensor, bias_O: Tensor, *, relu: bool) -> Tensor:
    if not inputs_BI.numel() or (
        weight_OI.dtype == torch.float32 and _small(len(inputs_BI), weight_OI)
    ):
        outputs_BO = torch.addmm(bias_O, inputs_BI, weight_OI.t())
        return outputs_BO.relu_() if relu else outputs_BO
    outputs: Tensor = torch.ops.mkldnn._linear_pointwise(
        inputs_BI, weight_OI, bias_O, "relu" if relu else "none", [], ""
    )
    return outputs


def _product(grad_BO: Tensor, weight_OI: Tensor) -> Tensor:
    """grad W: (B, I)."""
    if not grad_BO.numel() or _small(len(grad_BO), weight_OI):
        return grad_BO @ weight_OI
    product: Tensor = torch.ops.mkldnn._linear_pointwise(
        grad_BO, weight_OI.t(), None, "none", [], ""
    )
    return product


def _transposed_product(grad_BO: Tensor, inputs_BI: Tensor) -> Tensor:
    """grad^T x: (O, I)."""
    num_rows, swap = len(grad_BO), grad_BO.shape[1] > SWAP * inputs_BI.shape[1]
    left, right = (inputs_BI, grad_BO) if swap else (grad_BO, inputs_BI)
    if grad_BO.dtype == torch.bfloat16 or num_rows * left.shape[1] * right.shape[1] < ONEDNN_MACS:
        product = left.t() @ right
    else:
        product = torch.ops.mkldnn._linear_pointwise(left.t(), right.t(), None, "none", [], "")
    return product.t() if swap else product
