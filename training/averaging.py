"""An average of the dense layers' weights over the last part of an epoch, which is what is validated and kept.

Polynomial-decay averaging (Shamir & Zhang 2013, "Stochastic Gradient Descent for Non-smooth Optimization"): after k steps about the
last k / (ETA + 1) count, so that no window has to be chosen for a batch size or a log. The tables are not averaged: that would touch
every row in every step, and with row-wise Adagrad their steps shrink by themselves.
"""

import copy

import torch

from training.models.dlrm import DLRM

ETA = 8


def twin_of(model: DLRM) -> DLRM:
    """A model with the very same embeddings, and copies of all else that take no gradient."""
    twin = copy.deepcopy(model, {id(model.embeddings): model.embeddings})
    shared = {id(weight) for weight in model.embeddings.parameters()}
    for weight in twin.parameters():
        if id(weight) not in shared:
            weight.requires_grad_(False)
    return twin


@torch.no_grad()
def average(twin: DLRM, model: DLRM, step: int) -> None:
    """After this step of an epoch (from 0): a += (ETA + 1) / (step + ETA + 1) (w - a). The first one forgets all before it."""
    pairs = [(a, w) for a, w in zip(twin.parameters(), model.parameters(), strict=True) if a is not w]
    torch._foreach_lerp_([a for a, _ in pairs], [w for _, w in pairs], (ETA + 1) / (step + ETA + 1))
