"""An object with an optimizer of torch, for an actor of Ray."""

import torch

from tests.factories.ray_actors import Box


class OptimizerBox(Box):
    """An object that has taken a step of Adam."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.Adam([weight])
        weight.sum().backward()
        optimizer.step()
