"""Optimizers of the dense layers."""

import torch

from common.config.params import DenseOptimizer


def make_dense_optimizer(
    params: DenseOptimizer, weights: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the PyTorch optimizer that `train.dense_optimizer` names."""
    if params.name == "sgd":
        return torch.optim.SGD(weights, lr=params.lr, fused=True)
    if params.name == "adam":
        return torch.optim.Adam(weights, lr=params.lr, fused=True)
    return torch.optim.Adagrad(weights, lr=params.lr)
