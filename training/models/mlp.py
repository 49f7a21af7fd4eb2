"""The MLP, and the function that applies a stack of linear layers.

Shapes: B batch, I inputs and O outputs of a stack of layers.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from training.kernels import linear_layers
from training.kernels.choice import Precision


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Set the precision of the matrix products of every part of a model that has this choice."""
    for part in model.modules():
        if hasattr(part, "precision"):
            part.precision = precision  # type: ignore[assignment]


class MLP(nn.Sequential):
    """Linear layers with a ReLU between them.

    The initial weights are N(0, sqrt(2 / (inputs + outputs))), the biases N(0, sqrt(1 / outputs)),
    as in facebookresearch/dlrm.

    Args:
        widths: Inputs of the first layer and outputs of every layer.
        generator: Draws the initial weights.
        relu_last: Whether a ReLU follows the last layer too.

    Attributes:
        precision: Of the matrix products in training. Evaluation always uses fp32.
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
        if not relu_last:
            layers.pop()
        super().__init__(*layers)
        self.num_inputs = widths[0]
        self.relu_last = relu_last

    def forward(self, inputs_BI: Tensor) -> Tensor:
        """Return the outputs of the last layer, (B, O)."""
        return apply_layers(
            inputs_BI,
            [layer for layer in self if isinstance(layer, nn.Linear)],
            relu_last=self.relu_last,
            precision=self.precision if self.training else "fp32",
        )


def apply_layers(
    inputs_BI: Tensor, layers: Sequence[nn.Linear], *, relu_last: bool, precision: Precision
) -> Tensor:
    """Compute x -> relu(x W^T + b) for each layer, (B, I) -> (B, O), by a kernel if there is one.

    Args:
        inputs_BI: Inputs of the first layer.
        layers: The linear layers.
        relu_last: Whether a ReLU follows the last layer too.
        precision: Of the matrix products; the result has the dtype of the inputs.
    """
    if linear_layers.usable(inputs_BI, precision):
        weights = [layer.weight for layer in layers]
        biases = [
            layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)
            for layer in layers
        ]
        return linear_layers.linear_stack(
            inputs_BI, weights, biases, relu_last=relu_last, precision=precision
        )
    outputs_BO = inputs_BI
    with torch.autocast(inputs_BI.device.type, torch.bfloat16, enabled=precision == "bf16"):
        for k, layer in enumerate(layers, start=1):
            outputs_BO = layer(outputs_BO)
            if relu_last or k < len(layers):
                outputs_BO = torch.relu(outputs_BO)
    return outputs_BO.to(inputs_BI.dtype)
