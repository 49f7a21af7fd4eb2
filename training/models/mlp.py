"""The dense layers."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from training.kernels import linear_layers
from training.kernels.linear_layers import Precision


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Of the products of every part that has a choice."""
    for part in model.modules():
        if hasattr(part, "precision"):
            part.precision = precision  # type: ignore[assignment]


class MLP(nn.Sequential):
    """Linear layers of these widths with a ReLU between them, and behind the last if relu_last.

    Initial weights N(0, sqrt(2/(in+out))), biases N(0, sqrt(1/out)), drawn from `generator`. precision: of the products in training.
    """

    precision: Precision = "fp32"

    def __init__(
        self, widths: Sequence[int], generator: torch.Generator, *, relu_last: bool
    ) -> None:
        layers: list[nn.Module] = []
        for num_in, num_out in pairwise(widths):
            linear = nn.Linear(num_in, num_out)
            nn.init.normal_(linear.weight, std=(2 / (num_in + num_out)) ** 0.5, generator=generator)
            nn.init.normal_(linear.bias, std=(1 / num_out) ** 0.5, generator=generator)
            layers += [linear, nn.ReLU()]
        super().__init__(*layers[: None if relu_last else -1])
        self.num_inputs, self.relu_last = widths[0], relu_last

    def forward(self, inputs_BI: Tensor) -> Tensor:
        """(B, first width) -> (B, last width)."""
        stack = [layer for layer in self if isinstance(layer, nn.Linear)]
        return through(
            inputs_BI,
            stack,
            relu_last=self.relu_last,
            precision=self.precision if self.training else "fp32",
        )


def through(
    inputs_BI: Tensor, stack: Sequence[nn.Linear], *, relu_last: bool, precision: Precision
) -> Tensor:
    """x -> relu(x W^T + b), layer by layer, the last with a ReLU if relu_last; the compiled way where there is one."""
    if linear_layers.usable(inputs_BI):
        weights = [layer.weight for layer in stack]
        biases = [
            layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)
            for layer in stack
        ]
        return linear_layers.layers(
            inputs_BI, weights, biases, relu_last=relu_last, precision=precision
        )
    outputs_BO = inputs_BI
    with torch.autocast(inputs_BI.device.type, torch.bfloat16, enabled=precision == "bf16"):
        for k, layer in enumerate(stack, start=1):
            outputs_BO = layer(outputs_BO)
            if relu_last or k < len(stack):
                outputs_BO = torch.relu(outputs_BO)
    return outputs_BO.to(inputs_BI.dtype)
