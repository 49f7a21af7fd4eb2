"""The dense layers."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


class MLP(nn.Sequential):
    """Linear layers of these widths with a ReLU between them, and behind the last if relu_last.

    Initial weights N(0, sqrt(2/(in+out))), biases N(0, sqrt(1/out)), drawn from `generator`.
    """

    def __init__(self, widths: Sequence[int], generator: torch.Generator, *, relu_last: bool) -> None:
        layers: list[nn.Module] = []
        for num_in, num_out in pairwise(widths):
            linear = nn.Linear(num_in, num_out)
            nn.init.normal_(linear.weight, std=(2 / (num_in + num_out)) ** 0.5, generator=generator)
            nn.init.normal_(linear.bias, std=(1 / num_out) ** 0.5, generator=generator)
            layers += [linear, nn.ReLU()]
        super().__init__(*layers[: None if relu_last else -1])
