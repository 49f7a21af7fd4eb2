"""Cross layers of DCNv2 (Wang et al. 2021, arXiv:2008.13535) as an interaction.

The placement between embeddings and top MLP is that of TorchRec's DLRM_DCN and MLPerf's benchmark.

Shapes: B batch, F categorical features, D embedding dim, W = V D with V = F vectors, or F + 1 if
there is a bottom MLP.
"""

import torch
from torch import Tensor, nn

from training.kernels.choice import Precision
from training.models.interaction import CatInteraction
from training.models.mlp import apply_layers


class CrossInteraction(CatInteraction):
    """x_0 is the concatenation of all vectors; x_{l+1} = x_0 * (W_l x_l + b_l) + x_l.

    The last x goes to the top MLP. W_l is W x W, or the product U_l V_l of W x rank and rank x W.
    The initial matrices are N(0, sqrt(2 / (inputs + outputs))), and b_l = 0.

    Args:
        num_fields: F.
        embedding_dim: D.
        num_layers: Number of cross layers.
        rank: Rank of the matrices W_l; None for full matrices.
        generator: Draws the initial matrices.
        has_bottom: Whether there is a bottom MLP.
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
    """W x + b as one linear layer, or U (V x) + b as two.

    Attributes:
        precision: Of the matrix products in training. Evaluation always uses fp32.
    """

    precision: Precision = "fp32"

    def __init__(self, width: int, rank: int | None, generator: torch.Generator) -> None:
        if rank is None:
            factors = [nn.Linear(width, width)]
        else:
            factors = [nn.Linear(width, rank, bias=False), nn.Linear(rank, width)]
        for factor in factors:
            nn.init.xavier_normal_(factor.weight, generator=generator)
        nn.init.zeros_(factors[-1].bias)
        super().__init__(*factors)

    def forward(self, x_BW: Tensor) -> Tensor:
        precision: Precision = self.precision if self.training else "fp32"
        for factor in self:
            assert isinstance(factor, nn.Linear)
            x_BW = apply_layers(x_BW, [factor], relu_last=False, precision=precision)
        return x_BW
