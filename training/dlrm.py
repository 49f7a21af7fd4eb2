"""DLRM (Naumov et al. 2019), single-device maths with facebookresearch/dlrm's semantics.

Shapes: B batch, N dense columns, F categorical fields, D embedding dim, V = F + 1 vectors, P = V (V - 1) / 2 pairs of them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.tables import EmbeddingTables


class DLRM(nn.Module):
    """A click's logit from dense columns and categorical ids.

    bottom_mlp and top_mlp are the hidden widths; the outer ones follow: bottom N -> ... -> D, top D + P -> ... -> 1. Without dense
    columns (N = 0) there is no bottom MLP: V = F, and the top MLP sees the pairs alone.
    Every initial weight is drawn from `generator`: tables U(-sqrt(1/n), sqrt(1/n)), MLP weights N(0, sqrt(2/(in+out))), biases
    N(0, sqrt(1/out)).
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        num_dense: int,
        embedding_dim: int,
        bottom_mlp: Sequence[int],
        top_mlp: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.tables = EmbeddingTables(cardinalities, embedding_dim, generator)
        self.interaction = DotInteraction(len(cardinalities) + bool(num_dense))
        self.bottom = mlp([num_dense, *bottom_mlp, embedding_dim], generator).append(nn.ReLU()) if num_dense else None
        num_inputs = self.interaction.num_pairs + (embedding_dim if num_dense else 0)
        self.top = mlp([num_inputs, *top_mlp, 1], generator)

    def forward(self, dense_BN: Tensor, ids_BF: Tensor) -> Tensor:
        """Logits, shape (B,); the click probability is their sigmoid. dense_BN float, ids_BF int32 or int64, local to each column."""
        return self.logits(dense_BN, self.tables(ids_BF))

    def logits(self, dense_BN: Tensor, rows_BFD: Tensor) -> Tensor:
        """The same from table rows already looked up, so that a training step can take their gradient."""
        if self.bottom is None:
            without_dense_B1: Tensor = self.top(self.interaction(rows_BFD))
            return without_dense_B1.squeeze(1)
        bottom_BD = self.bottom(dense_BN)
        pairs_BP = self.interaction(torch.cat([bottom_BD.unsqueeze(1), rows_BFD], dim=1))
        logits_B1: Tensor = self.top(torch.cat([bottom_BD, pairs_BP], dim=1))
        return logits_B1.squeeze(1)


class DotInteraction(nn.Module):
    """Dot products of all pairs of V vectors: (B, V, D) -> (B, P), the strict lower triangle of T T^T, pair (i, j < i) row by row."""

    def __init__(self, num_vectors: int) -> None:
        super().__init__()
        i_P, j_P = torch.tril_indices(num_vectors, num_vectors, offset=-1)
        self.num_pairs = len(i_P)
        pair_of_VV = torch.zeros(num_vectors, num_vectors, dtype=torch.int64)  # which pair an element of T T^T is; none on the diagonal
        pair_of_VV[i_P, j_P] = pair_of_VV[j_P, i_P] = torch.arange(self.num_pairs)
        self.register_buffer("element_P", i_P * num_vectors + j_P, persistent=False)
        self.register_buffer("pair_of_VV", pair_of_VV.flatten(), persistent=False)

    def forward(self, vectors_BVD: Tensor) -> Tensor:
        pairs_BP: Tensor = _PairDots.apply(vectors_BVD, self.element_P, self.pair_of_VV)  # type: ignore[no-untyped-call]
        return pairs_BP


class _PairDots(torch.autograd.Function):
    """The gradient of the pairs is gathered into a symmetric matrix S, so that dT = S T: three times as fast as autograd's scatter."""

    @staticmethod
    def forward(ctx: Any, vectors_BVD: Tensor, element_P: Tensor, pair_of_VV: Tensor) -> Tensor:
        ctx.save_for_backward(vectors_BVD, pair_of_VV)
        dots_BVV = torch.bmm(vectors_BVD, vectors_BVD.mT)
        return dots_BVV.flatten(1).gather(1, element_P.expand(len(dots_BVV), -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BP: Tensor) -> tuple[Tensor, None, None]:
        vectors_BVD, pair_of_VV = ctx.saved_tensors
        B, V, _ = vectors_BVD.shape
        grad_BVV = grad_BP.gather(1, pair_of_VV.expand(B, -1)).view(B, V, V)
        grad_BVV.diagonal(dim1=1, dim2=2).zero_()
        return torch.bmm(grad_BVV, vectors_BVD), None, None


def mlp(widths: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers of these widths with a ReLU between them."""
    layers: list[nn.Module] = []
    for num_in, num_out in pairwise(widths):
        linear = nn.Linear(num_in, num_out)
        nn.init.normal_(linear.weight, std=(2 / (num_in + num_out)) ** 0.5, generator=generator)
        nn.init.normal_(linear.bias, std=(1 / num_out) ** 0.5, generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
