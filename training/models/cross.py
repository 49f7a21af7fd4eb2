"""DCNv2's cross layers (Wang et al. 2021, arXiv:2008.13535), placed as in TorchRec's DLRM_DCN and MLPerf's benchmark.

Shapes: B batch, F categorical fields, D embedding dim, W = (F, and one more where there is a bottom MLP) D inputs, r rank.
"""

import torch
from torch import Tensor, nn

from training.models.interaction import CatInteraction


class CrossInteraction(CatInteraction):
    """x_0 = all vectors, one behind the other; x_{l+1} = x_0 * (W_l x_l + b_l) + x_l; the last x goes to the top MLP.

    W_l is W x W, or U_l V_l^T with U_l, V_l of W x r. Initial matrices N(0, sqrt(2/(in+out))), b_l = 0, drawn from `generator`.
    """

    def __init__(
        self, num_fields: int, embedding_dim: int, num_layers: int, rank: int | None, generator: torch.Generator, *, has_bottom: bool
    ) -> None:
        super().__init__(num_fields, embedding_dim, has_bottom=has_bottom)
        self.layers = nn.ModuleList(_matrix(self.num_outputs, rank, generator) for _ in range(num_layers))

    def forward(self, bottom_BD: Tensor | None, rows_BFD: Tensor) -> Tensor:
        first_BW = super().forward(bottom_BD, rows_BFD)
        x_BW = first_BW
        for layer in self.layers:
            x_BW = torch.addcmul(x_BW, first_BW, layer(x_BW))
        return x_BW


def _matrix(width: int, rank: int | None, generator: torch.Generator) -> nn.Module:
    """W x + b, or U (V^T x) + b."""
    linears = [nn.Linear(width, width)] if rank is None else [nn.Linear(width, rank, bias=False), nn.Linear(rank, width)]
    for linear in linears:
        nn.init.xavier_normal_(linear.weight, generator=generator)
    nn.init.zeros_(linears[-1].bias)
    return nn.Sequential(*linears)
