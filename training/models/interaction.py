"""Interactions: how the vectors of a row are combined before the top MLP.

Shapes: B batch, F categorical features, D embedding dim, V vectors (F, or F + 1 if there is a
bottom MLP), P = V (V - 1) / 2 pairs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.kernels import embedding_ops as kernels


class Interaction(nn.Module):
    """Base class: combines the bottom MLP's vector and those of the categorical features.

    Attributes:
        num_outputs: Width of the result.
    """

    num_outputs: int

    def forward(self, bottom_BD: Tensor | None, rows_BFD: Tensor) -> Tensor:
        """Return (B, num_outputs).

        Args:
            bottom_BD: Output of the bottom MLP; None if there is none.
            rows_BFD: The vectors of the categorical features.
        """
        raise NotImplementedError


class DotInteraction(Interaction):
    """The bottom MLP's vector, followed by the dot products of all pairs of vectors.

    The pairs are the strict lower triangle of T T^T, row by row, where T is (V, D) with the bottom
    MLP's vector first. This is facebookresearch/dlrm's order.
    """

    def __init__(self, num_fields: int, embedding_dim: int, *, has_bottom: bool) -> None:
        super().__init__()
        num_vectors = num_fields + 1 if has_bottom else num_fields
        row_P, column_P = torch.tril_indices(num_vectors, num_vectors, offset=-1)
        num_pairs = len(row_P)
        self.num_pairs, self.embedding_dim = num_pairs, embedding_dim
        self.num_outputs = embedding_dim + num_pairs if has_bottom else num_pairs
        # the number of the pair that an element of T T^T is; the diagonal is no pair, and is not
        # used
        pair_VV = torch.zeros(num_vectors, num_vectors, dtype=torch.int64)
        pair_VV[row_P, column_P] = pair_VV[column_P, row_P] = torch.arange(num_pairs)
        self.register_buffer("element_P", row_P * num_vectors + column_P, persistent=False)
        self.register_buffer("pair_VV", pair_VV.flatten(), persistent=False)

    def forward(self, bottom_BD: Tensor | None, rows_BFD: Tensor) -> Tensor:
        if kernels.usable(rows_BFD):
            return kernels.PairDots.apply(bottom_BD, rows_BFD)  # type: ignore[no-any-return, no-untyped-call]
        if bottom_BD is None:
            return self.pair_dots(rows_BFD)
        vectors_BVD = torch.cat([bottom_BD.unsqueeze(1), rows_BFD], dim=1)
        return torch.cat([bottom_BD, self.pair_dots(vectors_BVD)], dim=1)

    def pair_dots(self, vectors_BVD: Tensor) -> Tensor:
        """Return the dot products of all pairs, (B, P)."""
        dots_BP: Tensor = _PairDots.apply(vectors_BVD, self.element_P, self.pair_VV)  # type: ignore[no-untyped-call]
        return dots_BP


class CatInteraction(Interaction):
    """The concatenation of all vectors, the bottom MLP's first."""

    def __init__(self, num_fields: int, embedding_dim: int, *, has_bottom: bool) -> None:
        super().__init__()
        num_vectors = num_fields + 1 if has_bottom else num_fields
        self.num_outputs = num_vectors * embedding_dim

    def forward(self, bottom_BD: Tensor | None, rows_BFD: Tensor) -> Tensor:
        if bottom_BD is None:
            return rows_BFD.flatten(1)
        return torch.cat([bottom_BD, rows_BFD.flatten(1)], dim=1)


class _PairDots(torch.autograd.Function):
    """Selects the pairs (B, P) from T T^T.

    The backward pass gathers the gradient of the pairs into a symmetric matrix S, so that dT = S T.
    That is three times as fast as the scatter of PyTorch's autograd.
    """

    @staticmethod
    def forward(ctx: Any, vectors_BVD: Tensor, element_P: Tensor, pair_VV: Tensor) -> Tensor:
        ctx.save_for_backward(vectors_BVD, pair_VV)
        dots_BVV = torch.bmm(vectors_BVD, vectors_BVD.mT)
        return dots_BVV.flatten(1).index_select(1, element_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BP: Tensor) -> tuple[Tensor, None, None]:
        vectors_BVD, pair_VV = ctx.saved_tensors
        B, V, _ = vectors_BVD.shape
        grad_BVV = grad_BP.gather(1, pair_VV.expand(B, -1)).view(B, V, V)
        grad_BVV.diagonal(dim1=1, dim2=2).zero_()
        return torch.bmm(grad_BVV, vectors_BVD), None, None
