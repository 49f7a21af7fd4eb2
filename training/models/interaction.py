"""How the vectors of a row meet before the top MLP.

Shapes: B batch, F categorical fields, D embedding dim, V vectors (F, and one more where there is a bottom MLP), P = V (V - 1) / 2 pairs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.kernels import embedding_ops as kernels


class Interaction(nn.Module):
    """(B, D) of the bottom MLP, or None, and (B, F, D) of the tables -> (B, num_outputs)."""

    num_outputs: int

    def forward(self, bottom_BD: Tensor | None, rows_BFD: Tensor) -> Tensor:
        raise NotImplementedError


class DotInteraction(Interaction):
    """The bottom's vector, then all pairs' dot products: the strict lower triangle of T T^T, pair (i, j < i) row by row."""

    def __init__(self, num_fields: int, embedding_dim: int, *, has_bottom: bool) -> None:
        super().__init__()
        num_vectors = num_fields + has_bottom
        i_P, j_P = torch.tril_indices(num_vectors, num_vectors, offset=-1)
        self.num_outputs = len(i_P) + embedding_dim * has_bottom
        pair_of_VV = torch.zeros(
            num_vectors, num_vectors, dtype=torch.int64
        )  # which pair an element of T T^T is; none on the diagonal
        pair_of_VV[i_P, j_P] = pair_of_VV[j_P, i_P] = torch.arange(len(i_P))
        self.register_buffer("element_P", i_P * num_vectors + j_P, persistent=False)
        self.register_buffer("pair_of_VV", pair_of_VV.flatten(), persistent=False)

    def forward(self, bottom_BD: Tensor | None, rows_BFD: Tensor) -> Tensor:
        if kernels.usable(rows_BFD):
            return kernels.Dots.apply(bottom_BD, rows_BFD)  # type: ignore[no-any-return, no-untyped-call]
        if bottom_BD is None:
            return self.pairs(rows_BFD)
        return torch.cat(
            [bottom_BD, self.pairs(torch.cat([bottom_BD.unsqueeze(1), rows_BFD], dim=1))], dim=1
        )

    def pairs(self, vectors_BVD: Tensor) -> Tensor:
        pairs_BP: Tensor = _PairDots.apply(vectors_BVD, self.element_P, self.pair_of_VV)  # type: ignore[no-untyped-call]
        return pairs_BP


class CatInteraction(Interaction):
    """All vectors, one behind the other: the bottom's first, then the columns'."""

    def __init__(self, num_fields: int, embedding_dim: int, *, has_bottom: bool) -> None:
        super().__init__()
        self.num_outputs = (num_fields + has_bottom) * embedding_dim

    def forward(self, bottom_BD: Tensor | None, rows_BFD: Tensor) -> Tensor:
        return (
            rows_BFD.flatten(1)
            if bottom_BD is None
            else torch.cat([bottom_BD, rows_BFD.flatten(1)], dim=1)
        )


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
