"""Dense inputs to zero mean and unit variance over the training rows: without it the largest logarithms rule the first layer's steps."""

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """(x - mean) / std by column. Until it is fitted it gives back what it gets. The two are weights of the model, saved with it."""

    mean: Tensor  # (N,)
    std: Tensor  # (N,)

    def __init__(self, num_dense: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_dense))
        self.register_buffer("std", torch.ones(num_dense))

    def fit(self, dense_RN: Tensor) -> None:
        """By these rows; a column of one value stays in its unit, and what is no number does not count."""
        mean_N = dense_RN.double().where(dense_RN.isfinite(), torch.nan).nanmean(dim=0).nan_to_num()
        std_N = (
            (dense_RN - mean_N)
            .square()
            .where(dense_RN.isfinite(), torch.nan)
            .nanmean(dim=0)
            .nan_to_num()
            .sqrt()
        )
        self.mean.copy_(mean_N)
        self.std.copy_(
            torch.where(std_N > torch.finfo(torch.float32).eps * mean_N.abs(), std_N, 1.0)
        )

    def forward(self, dense_BN: Tensor) -> Tensor:
        return (dense_BN - self.mean) / self.std
