"""DCNv2's cross layers (Wang et al. 2021, arXiv:2008.13535), placed as in TorchRec's DLRM_DCN and MLPerf's benchmark.

Shapes: B batch, F categorical fields, D embedding dim, W = (F, and one more where there is a bottom MLP) D inputs, r rank.
"""

import torch
from torch import Tensor, nn

from training.kernels.linear_layers import Precision
from training.models.interaction import CatInteraction
from training.models.mlp import through


class CrossInteraction(CatInteraction):
    """x_0 = all vectors, one behind the other; x_{l+1} = x_0 * (W_l x_l + b_l) + x_l; the last x goes to the top MLP.

    W_l is W x W, or U_l V_l^T with U_l, V_l of W x r. Initial matrices N(0, sqrt(2/(in+out))), b_l = 0, drawn from `generator`.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        num_layers: int,
        rank: int | None,
        generator: torch.Generator,
        *,
        has_bottom: bool,
    ) -> None:
        super().__init__(num_fields, embedding_dim, has_bottom=has_bottom)
        self.layers = nn.ModuleList(
            CrossMatrix(self.num_outputs, rank, generator) for _ in range(num_layers)
        )

    def forward(self, bottom_BD: Tensor | None, rows_BFD: Tensor) -> Tensor:
        first_BW = super().forward(bottom_BD, rows_BFD)
        x_BW = first_BW
        for layer in self.layers:
            x_BW = torch.addcmul(x_BW, first_BW, layer(x_BW))
        return x_BW


class CrossMatrix(nn.Sequential):
    """W x + b by one linear layer, or U (V^T x) + b by two. precision: of the products in training."""

    precision: Precision = "fp32"

    def __init__(self, width: int, rank: int | None, generator: torch.Generator) -> None:
        factors = (
            [nn.Linear(width, width)]
            if rank is None
            else [nn.Linear(width, rank, bias=False), nn.Linear(rank, width)]
        )
        for factor in factors:
            nn.init.xavier_normal_(factor.weight, generator=generator)
        nn.init.zeros_(factors[-1].bias)
        super().__init__(*factors)

    def forward(self, x_BW: Tensor) -> Tensor:
        for factor in self:
            assert isinstance(factor, nn.Linear)
            x_BW = through(
                x_BW,
                [factor],
                relu_last=False,
                precision=self.precision if self.training else "fp32",
            )
        return x_BW
