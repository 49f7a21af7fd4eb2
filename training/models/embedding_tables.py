"""Embedding tables. All tables of one dim are one contiguous weight, R = sum of the cardinalities rows of D floats; where they are
spread over several ranks (training/distributed/sharding/sharded_tables.py), each rank has some of the rows.

In training the looked-up rows are a leaf of the graph (`rows_BFD.requires_grad_()`), and their gradient goes to a sparse optimizer
(training/optim/embedding_optimizers.py); the weight itself takes none.

Shapes: B batch, F categorical fields, D embedding dim, R rows of all tables.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.kernels import embedding_ops as kernels
from training.kernels.memory_hints import on_large_pages


class Tables(nn.Module):
    """One table of `cardinality` rows per categorical column, wherever its rows lie.

    A table of n rows starts as U(-sqrt(1/n), sqrt(1/n)), or as U(-b, b) with its b of `bounds`. A subclass has the rows.
    """

    offsets: Tensor  # (F,), int64

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        starts = [0, *accumulate(cardinalities)]
        self.register_buffer("offsets", torch.tensor(starts[:-1]), persistent=False)
        self.spans = list(pairwise(starts))  # first row and the one behind the last of each table
        self.bounds = list(bounds or map(_bound, cardinalities))
        self.num_rows, self.embedding_dim = starts[-1], embedding_dim
        self.first_values = generator.clone_state()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Take the initial values again: they are drawn once more, and no copy of them is kept."""
        self._draw(self.first_values.clone_state())

    def forward(self, ids_BF: Tensor) -> Tensor:
        """The rows (B, F, D) of these ids, which are local to each column: 0 .. cardinality-1, int32 or int64."""
        raise NotImplementedError

    def row_numbers(self, ids_BF: Tensor) -> Tensor:
        """The ids' rows, counted over all tables, int64."""
        return ids_BF + self.offsets

    def parts(self) -> dict[str, Any]:
        """Each table's rows, as k.weight: a tensor (n, D), or a sharded one; not copied."""
        raise NotImplementedError

    def put(self, k: int, part: Any, values: Tensor) -> None:
        """The values of the table number k, or of its first rows, into its part, or into what an optimizer keeps for each of its rows."""
        raise NotImplementedError

    def make_optimizer(self) -> Any:
        """Where it has to be one of the tables' own: a EmbeddingOptimizer."""
        raise NotImplementedError

    def _draw(self, generator: torch.Generator) -> None:
        """Every table's values from the generator, one table after the other."""
        raise NotImplementedError


class EmbeddingTables(Tables):
    """All rows here, in one weight (R, D)."""

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
    ) -> None:
        super().__init__(cardinalities, embedding_dim, generator, bounds)
        self.weight = nn.Parameter(
            on_large_pages(torch.empty(self.num_rows, embedding_dim)), requires_grad=False
        )
        self._draw(generator)

    def _draw(self, generator: torch.Generator) -> None:
        for (start, end), bound in zip(self.spans, self.bounds, strict=True):
            rows = self.weight[start:end]
            if rows.device == generator.device:
                rows.uniform_(-bound, bound, generator=generator)
            else:
                rows.copy_(torch.empty(rows.shape).uniform_(-bound, bound, generator=generator))

    def parts(self) -> dict[str, Any]:
        return {f"{k}.weight": self.weight[start:end] for k, (start, end) in enumerate(self.spans)}

    @torch.no_grad()
    def put(self, k: int, part: Any, values: Tensor) -> None:
        part[: len(values)].copy_(values)

    def forward(self, ids_BF: Tensor) -> Tensor:
        if kernels.usable(self.weight):
            return kernels.look_up(self.weight, ids_BF, self.offsets)
        return nn.functional.embedding(self.row_numbers(ids_BF), self.weight)


class MakeTables(Protocol):
    """EmbeddingTables, or what spreads its rows over the ranks."""

    def __call__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
    ) -> Tables: ...


def _bound(num_rows: int) -> float:
    return float(num_rows**-0.5)
