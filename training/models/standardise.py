"""Standardisation of the dense features.

Without it, features with large values dominate the gradient steps of the first layer.

Shapes: B batch, N dense features, R training rows.
"""

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Returns (x - mean) / std of each column; the identity until it is fitted.

    Attributes:
        mean: (N,) float32, saved with the weights of the model.
        std: (N,) float32, saved with the weights of the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_dense: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_dense))
        self.register_buffer("std", torch.ones(num_dense))

    def fit(self, dense_RN: Tensor) -> None:
        """Set mean and std to those of these rows. NaN and infinite values are left out.

        A column whose values are all equal keeps the std 1.
        """
        finite_RN = dense_RN.isfinite()
        mean_N = dense_RN.double().where(finite_RN, torch.nan).nanmean(dim=0).nan_to_num()
        square_RN = (dense_RN - mean_N).square().where(finite_RN, torch.nan)
        std_N = square_RN.nanmean(dim=0).nan_to_num().sqrt()
        is_constant_N = std_N <= torch.finfo(torch.float32).eps * mean_N.abs()
        self.mean.copy_(mean_N)
        self.std.copy_(std_N.masked_fill(is_constant_N, 1.0))

    def forward(self, dense_BN: Tensor) -> Tensor:
        return (dense_BN - self.mean) / self.std
