"""The lookups of a batch in embedding tables when features have lists of ids or share tables.

Shapes: B batch, F categorical features, V values of all lists of a feature, N vectors that a read
makes, D embedding dim.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from training.kernels.read import Read


class CategoricalInputs(NamedTuple):
    """The tables and the lists of the categorical features of a model.

    Attributes:
        tables: The number of the table that each feature reads, (F,); None for a feature that the
            model leaves out. Tables are numbered in the order of their first features.
        poolings: How the rows of a list become one vector, one of POOLINGS, for each feature; None
            for a feature with one value, (F,).
        names: The name of each feature, (F,). Only a model that chooses by name needs them.
    """

    tables: Sequence[int | None]
    poolings: Sequence[str | None]
    names: Sequence[str] = ()

    @property
    def is_plain(self) -> bool:
        """Whether every feature has one value, and a table of its own."""
        has_own_table = all(table in (None, k) for k, table in enumerate(self.tables))
        return has_own_table and not any(self.poolings)


class Reads(NamedTuple):
    """The lookups of a batch in a group of tables.

    Attributes:
        num_rows: B.
        columns: Reads of one vector for each row of the batch.
        lists: Reads of one vector for each value, of features whose rows must be composed before
            they are pooled.
    """

    num_rows: int
    columns: list[Read]
    lists: list[Read]

    def split(self, vectors: Sequence[Tensor]) -> list[tuple[Read, Tensor]]:
        """Return each read with its vectors, or with their gradients.

        Args:
            vectors: Those of all columns, (B, columns, D), then those of each read of `lists`,
                (V, D).
        """
        columns_BKD, *of_lists = vectors
        return [
            *((read, columns_BKD[:, k]) for k, read in enumerate(self.columns)),
            *zip(self.lists, of_lists, strict=True),
        ]


def pool(rows_VD: Tensor, starts: Tensor, weights: Tensor | None, pooling: str) -> Tensor:
    """Combine the rows of each list into one vector, as torch.nn.EmbeddingBag does.

    An empty list gives zeros. A NaN in a list makes NaN of its element of the vector, also with
    `max`, where EmbeddingBag skips one that is not in the first row of the list. The result is
    differentiable with respect to the rows.

    Args:
        rows_VD: The rows of all lists, one after the other.
        starts: Where each list starts, and V, (B + 1,), int64.
        weights: The factor of each row, (V,), or None; for `sum` only.
        pooling: One of POOLINGS.

    Returns:
        (B, D).
    """
    if not len(rows_VD):  # embedding_bag takes no table without rows
        # The sum makes the zeros depend on the rows: all ranks of sharded tables must go back.
        return rows_VD.new_zeros(len(starts) - 1, rows_VD.shape[1]) + rows_VD.sum(dim=0)
    numbers_V = torch.arange(len(rows_VD), device=rows_VD.device)
    if weights is not None:
        weights = weights.to(rows_VD.dtype)
    vectors_BD = embedding_bag(
        numbers_V,
        rows_VD,
        starts,
        mode=pooling,
        per_sample_weights=weights,
        include_last_offset=True,
    )
    if pooling != "max":
        return vectors_BD
    is_nan_VD = rows_VD.isnan()
    if not is_nan_VD.any():
        return vectors_BD
    nan_BD = pool(rows_VD.where(is_nan_VD, 0), starts, None, "sum")
    return nan_BD.where(nan_BD.isnan(), vectors_BD)


def vectors_of(rows_VD: Tensor, read: Read) -> Tensor:
    """Return the vectors of a read, (N, D), from the rows of its values; differentiable."""
    if read.starts is None:
        return rows_VD
    assert read.pooling is not None
    return pool(rows_VD, read.starts, read.weights, read.pooling)


@torch.no_grad()
def value_gradients(look_up: Callable[[], Tensor], read: Read, grad_ND: Tensor) -> Tensor:
    """Return the gradient of the row of each value, (V, D).

    Args:
        look_up: Returns the row of each value, (V, D), as it was pooled; only `max` depends on it.
        read: What was read.
        grad_ND: The gradient of each vector.
    """
    if read.starts is None:
        return grad_ND
    if read.pooling == "max":
        with torch.enable_grad():
            rows_VD = look_up().detach().requires_grad_()
            vectors_ND = vectors_of(rows_VD, read)
        (grad_VD,) = torch.autograd.grad(vectors_ND, rows_VD, grad_ND)
        return grad_VD
    lengths_N = read.starts.diff()
    if read.pooling == "mean":
        grad_ND = grad_ND / lengths_N.clamp(min=1).unsqueeze(1)
    grad_VD = grad_ND.repeat_interleave(lengths_N, dim=0)
    return grad_VD if read.weights is None else grad_VD * read.weights.unsqueeze(1)
