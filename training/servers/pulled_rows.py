"""The rows of a step that a worker has pulled from the table servers.

Shapes: B batch, F tables, D embedding dim, K values of a batch, U distinct rows of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.kernels import embedding_ops as kernels
from training.models.embedding_tables import EmbeddingTables, Tables
from training.models.reads import Reads
from training.optim.embedding_optimizers import add_rows


class Wanted(NamedTuple):
    """The rows that a batch reads from a group of tables.

    Attributes:
        rows: The distinct rows, in the concatenation of all tables, ascending, (U,), int64.
        selection: What is looked up, with the positions in `rows` instead of ids.
    """

    rows: Tensor
    selection: Tensor | Reads


class PulledRows(EmbeddingTables):
    """A group of tables of which only the rows of one step are here, as one table of U rows.

    It is looked up by `Wanted.selection`.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
    ) -> None:
        Tables.__init__(self, cardinalities, embedding_dim, generator, bounds)
        self.all_spans = self.spans
        self.first_rows = self.offsets
        self.hold(torch.empty(0, embedding_dim))

    def wanted(self, selection: Tensor | Reads) -> Wanted:
        """Return the distinct rows of a selection.

        Args:
            selection: What `Embeddings.selections` returned for this group.

        Raises:
            IndexError: An id is outside its table.
        """
        if isinstance(selection, Tensor):
            if kernels.usable(self.weight):
                return Wanted(*kernels.distinct_rows(selection, self.first_rows, self.num_rows))
            rows_BF = self._checked_rows(selection)
            rows_U, positions_BF = torch.unique(rows_BF, return_inverse=True)
            return Wanted(rows_U, positions_BF)
        reads = [*selection.columns, *selection.lists]
        rows_U, positions_K = torch.unique(
            torch.cat([self._rows_of_table(read.table, read.values) for read in reads]),
            return_inverse=True,
        )
        parts = positions_K.split([len(read.values) for read in reads])
        compact = [
            read._replace(table=0, values=part) for read, part in zip(reads, parts, strict=True)
        ]
        num_columns = len(selection.columns)
        return Wanted(
            rows_U, selection._replace(columns=compact[:num_columns], lists=compact[num_columns:])
        )

    def hold(self, rows_UD: Tensor) -> None:
        """Take the rows that were pulled."""
        self.weight = nn.Parameter(rows_UD, requires_grad=False)
        self.spans = [(0, len(rows_UD))]
        self.offsets = torch.zeros(1, dtype=torch.int64)

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Look up rows by their positions, (B, F, D)."""
        return super().forward(ids_BF.reshape(-1, 1)).view(*ids_BF.shape, self.embedding_dim)

    def summed(self, selection: Tensor | Reads, grads: Sequence[Tensor]) -> Tensor:
        """Return the gradient of each of the rows, (U, D).

        Args:
            selection: What was looked up.
            grads: The gradients of what `lookup` returned for the group.
        """
        total_UD = torch.zeros_like(self.weight)
        if isinstance(selection, Tensor):
            positions_K, grad_KD = selection.flatten(), grads[0].flatten(0, 1)
        else:
            positions_K, grad_KD = self.value_gradients(selection, grads)
        if not kernels.usable(total_UD, grad_KD):
            return add_rows(total_UD, positions_K, grad_KD)
        # A step of SGD with the learning rate -1 adds the gradients.
        positions_K1, grad_K1D = positions_K.unsqueeze(1), grad_KD.unsqueeze(1)
        kernels.step_sgd(total_UD, positions_K1, self.offsets, grad_K1D, -1.0)
        return total_UD

    def _checked_rows(self, ids_BF: Tensor) -> Tensor:
        sizes_F = torch.tensor([end - start for start, end in self.all_spans])
        if bool(((ids_BF < 0) | (ids_BF >= sizes_F)).any()):
            raise IndexError("an id of the batch is outside its table")
        return ids_BF + self.first_rows

    def _rows_of_table(self, table: int, values: Tensor) -> Tensor:
        start, end = self.all_spans[table]
        if bool(((values < 0) | (values >= end - start)).any()):
            raise IndexError(f"an id of the batch is outside its table {table}")
        return values.long() + start
