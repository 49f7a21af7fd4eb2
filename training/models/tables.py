"""Embedding tables. All tables of one dim are one contiguous weight, R = sum of the cardinalities rows of D floats.

In training the looked-up rows are a leaf of the graph (`rows_BFD.requires_grad_()`), and their gradient goes to a sparse optimizer
(training/optim/tables.py); the weight itself takes none.

Shapes: B batch, F categorical fields, D embedding dim, R rows of all tables.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from training.kernels import rows as kernels
from training.kernels.pages import on_large_pages


class EmbeddingTables(nn.Module):
    """One table of `cardinality` rows per categorical column.

    A table of n rows starts as U(-sqrt(1/n), sqrt(1/n)), or as U(-b, b) with its b of `bounds`.
    """

    offsets: Tensor  # (F,), int64

    def __init__(
        self, cardinalities: Sequence[int], embedding_dim: int, generator: torch.Generator, bounds: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        starts = [0, *accumulate(cardinalities)]
        weight_RD = on_large_pages(torch.empty(starts[-1], embedding_dim))
        self.weight = nn.Parameter(weight_RD, requires_grad=False)
        self.register_buffer("offsets", torch.tensor(starts[:-1]), persistent=False)
        self.bounds = {(start, end): b for (start, end), b in zip(pairwise(starts), bounds or map(_bound, cardinalities), strict=True)}
        self.first_values = generator.clone_state()
        self._draw(generator)

    @torch.no_grad()
    def begin_again(self) -> None:
        """Take the initial values again: they are drawn once more, and no copy of them is kept."""
        self._draw(self.first_values.clone_state())

    def _draw(self, generator: torch.Generator) -> None:
        for (start, end), bound in self.bounds.items():
            rows = self.weight[start:end]
            if rows.device == generator.device:
                rows.uniform_(-bound, bound, generator=generator)
            else:
                rows.copy_(torch.empty(rows.shape).uniform_(-bound, bound, generator=generator))

    def forward(self, ids_BF: Tensor) -> Tensor:
        """The rows (B, F, D) of these ids, which are local to each column: 0 .. cardinality-1, int32 or int64."""
        if kernels.usable(self.weight):
            return kernels.look_up(self.weight, ids_BF, self.offsets)
        return nn.functional.embedding(self.row_numbers(ids_BF), self.weight)

    def row_numbers(self, ids_BF: Tensor) -> Tensor:
        """Where the rows of these ids lie in the weight, int64."""
        return ids_BF + self.offsets


def _bound(num_rows: int) -> float:
    return float(num_rows**-0.5)
