"""Averages of weights, which are what is validated and kept.

Within an epoch, of the dense layers, by polynomial decay (Shamir & Zhang 2013, "Stochastic Gradient Descent for Non-smooth
Optimization"): after k steps about the last k / (ETA + 1) count, so that no window has to be chosen for a batch size or a log. The
tables are left out: that would touch every row in every step, and with row-wise Adagrad their steps shrink by themselves.

Over epochs that each begin with the same tables (restarts.py), of all weights: what each epoch learned of its order of the rows alone
cancels out, as it does in a mean of several models' scores.
"""

import copy

import torch
from torch import Tensor, nn

from training.models.dlrm import DLRM

ETA = 8


def twin_of(model: DLRM) -> DLRM:
    """A model with the very same tables, and copies of all else that take no gradient."""
    twin = copy.deepcopy(model, {id(tables): tables for tables in model.embeddings.tables})
    return twin.requires_grad_(False)  # the tables never take one


@torch.no_grad()
def average(twin: DLRM, model: DLRM, step: int) -> None:
    """After this step of an epoch (from 0): a += (ETA + 1) / (step + ETA + 1) (w - a). The first one forgets all before it."""
    pairs = [(a, w) for a, w in zip(twin.parameters(), model.parameters(), strict=True) if a is not w]
    torch._foreach_lerp_([a for a, _ in pairs], [w for _, w in pairs], (ETA + 1) / (step + ETA + 1))


class EpochMean(nn.Module):
    """The mean of a twin's weights as the epochs left them, all but the first: its dense layers had everything to learn."""

    def __init__(self, twin: DLRM) -> None:
        super().__init__()
        self.means = nn.ParameterList(nn.Parameter(torch.zeros_like(weight), requires_grad=False) for weight in twin.parameters())

    @torch.no_grad()
    def take_in(self, twin: DLRM, epoch: int) -> None:
        """At the end of an epoch (from 1), the second or a later one: the twin, its tables too, gets the mean's weights."""
        weights: list[Tensor] = list(twin.parameters())
        means: list[Tensor] = list(self.means)
        torch._foreach_lerp_(means, weights, 1 / (epoch - 1))
        torch._foreach_copy_(weights, means)
