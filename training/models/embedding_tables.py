"""Embedding tables of one dim.

On one device all tables of one dim are one contiguous weight: R, the sum of their cardinalities,
rows of D floats. With hybrid parallelism (training/distributed/sharding/sharded_tables.py) each
rank has some of the rows.

In training the looked-up rows are a leaf of the autograd graph (`rows_BFD.requires_grad_()`). Their
gradient goes to a sparse optimizer (training/optim/embedding_optimizers.py); the weight itself has
no gradient.

Shapes: B batch, F tables, D embedding dim, R rows of all tables.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from training.kernels import embedding_ops as kernels
from training.kernels.memory_hints import on_large_pages
from training.kernels.read import Read
from training.models.reads import Reads, value_gradients, vectors_of
from training.tensor_files import BLOCK_BYTES, FLOAT32_BYTES

INDEX_BYTES = 32  # of what is calculated for each row of a block, such as its position


class Tables(nn.Module):
    """Base class: F embedding tables of one dim. A subclass stores the rows.

    Args:
        cardinalities: Number of rows of each table.
        embedding_dim: Floats of a row.
        generator: Draws the initial values.
        bounds: b of each table, whose values start as U(-b, b). The default for a table of n rows
            is sqrt(1/n), as in facebookresearch/dlrm.

    Attributes:
        offsets: (F,) int64, the first row of each table in the concatenation of all tables.
        spans: First row and end (exclusive) of each table in the concatenation of all tables.
        num_rows: R.
    """

    offsets: Tensor

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
        self.spans = list(pairwise(starts))
        self.bounds = list(bounds or map(_default_bound, cardinalities))
        self.num_rows = starts[-1]
        self.embedding_dim = embedding_dim
        self.initial_generator = generator.clone_state()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set all rows to their initial values again.

        The values are drawn a second time from the saved state of the generator, so no copy of them
        takes memory.
        """
        self._draw(self.initial_generator.clone_state())

    @property
    def num_parameters(self) -> int:
        """The number of weights of all rows."""
        return self.num_rows * self.embedding_dim

    @property
    def bytes_of_row(self) -> int:
        """The bytes that the look-up of one row reads."""
        return FLOAT32_BYTES * self.embedding_dim

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Look up rows.

        Args:
            ids_BF: int32 or int64; in each column from 0 to the cardinality of the table - 1.

        Returns:
            The rows (B, F, D), float32.
        """
        raise NotImplementedError

    def read(self, reads: Reads) -> list[Tensor]:
        """Look up the vectors of a batch whose features have lists or share tables.

        Returns:
            The vectors of all columns (B, columns, D), then those of each read of `reads.lists`,
            (V, D), float32.
        """
        raise NotImplementedError

    def value_gradients(self, reads: Reads, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the row and the gradient of each value that `read` has looked up.

        Args:
            reads: What was read.
            grads: The gradients of what `read` returned.

        Returns:
            The rows, in the concatenation of all tables, (K,), int64; and the gradients (K, D).
        """
        raise NotImplementedError

    def row_numbers(self, ids_BF: Tensor) -> Tensor:
        """Return the ids as rows of the concatenation of all tables, int64."""
        return ids_BF + self.offsets

    def row_numbers_of(self, read: Read) -> Tensor:
        """Return the rows of a read's values in the concatenation of all tables, (V,), int64."""
        start, end = self.spans[read.table]
        values = read.values.long()
        is_checked = values.device.type == "cpu" and not torch.compiler.is_exporting()
        if is_checked and bool(((values < 0) | (values >= end - start)).any()):
            raise IndexError(f"an id of the batch is outside its table {read.table}")
        return values + start

    def parts(self) -> dict[str, Any]:
        """Return the rows of each table k under the name `k.weight`, without a copy.

        A value is a tensor (n, D), or a ShardedTensor where the rows are sharded.
        """
        raise NotImplementedError

    def load_rows(self, k: int, part: Any, values: Tensor) -> None:
        """Copy values, one per row of table k, into a part of that table.

        Args:
            k: Number of the table.
            part: What `parts` returned for this table, or what an optimizer keeps for each of its
                rows.
            values: The values of the whole table, or of its first rows.
        """
        raise NotImplementedError

    def make_optimizer(self) -> Any:
        """Return the EmbeddingOptimizer of tables that only work with an optimizer of their own."""
        raise NotImplementedError

    def _draw(self, generator: torch.Generator) -> None:
        """Draw the values of every table, in order."""
        raise NotImplementedError


class EmbeddingTables(Tables):
    """Tables that are whole on this device: one weight (R, D).

    Args:
        cardinalities: As of Tables; likewise the next three.
        embedding_dim: D.
        generator: Draws the initial values.
        bounds: The bounds of the initial values.
        device: On `meta` the weight takes no memory and no values are drawn, until another weight
            takes its place.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
        device: Literal["cpu", "meta"] = "cpu",
    ) -> None:
        super().__init__(cardinalities, embedding_dim, generator, bounds)
        weight_RD = on_large_pages(torch.empty(self.num_rows, embedding_dim, device=device))
        self.weight = nn.Parameter(weight_RD, requires_grad=False)
        if device != "meta":
            self._draw(generator)

    def _draw(self, generator: torch.Generator) -> None:
        for (start, end), bound in zip(self.spans, self.bounds, strict=True):
            rows = self.weight[start:end]
            if rows.device == generator.device:
                rows.uniform_(-bound, bound, generator=generator)
                continue
            for first, values in drawn_blocks(end - start, self.embedding_dim, bound, generator):
                rows[first : first + len(values)].copy_(values)

    def parts(self) -> dict[str, Any]:
        return {f"{k}.weight": self.weight[start:end] for k, (start, end) in enumerate(self.spans)}

    @torch.no_grad()
    def load_rows(self, k: int, part: Any, values: Tensor) -> None:
        part[: len(values)].copy_(values)

    def forward(self, ids_BF: Tensor) -> Tensor:
        if kernels.usable(self.weight):
            return kernels.embedding_lookup(self.weight, ids_BF, self.offsets)
        return nn.functional.embedding(self.row_numbers(ids_BF), self.weight)

    def read(self, reads: Reads) -> list[Tensor]:
        if torch.compiler.is_exporting():  # a model without lists
            return [torch.stack([self._rows(read) for read in reads.columns], dim=1)]
        K, D = len(reads.columns), self.embedding_dim
        vectors = [self.weight.new_empty(reads.num_rows, K, D)]
        vectors += [self.weight.new_empty(len(read.values), D) for read in reads.lists]
        targets = reads.split(vectors)
        if kernels.usable(self.weight):
            kernels.pooled_lookup(self.weight, self.spans, *zip(*targets, strict=True))
            return vectors
        for read, target_ND in targets:
            target_ND.copy_(self._vectors_of(read))
        return vectors

    def value_gradients(self, reads: Reads, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        targets = reads.split(grads)
        rows_K = [self.row_numbers_of(read) for read, _ in targets]
        grad_KD = [
            value_gradients(partial(self._rows, read), read, grad_ND) for read, grad_ND in targets
        ]
        return torch.cat(rows_K), torch.cat(grad_KD)

    def _rows(self, read: Read) -> Tensor:
        return nn.functional.embedding(self.row_numbers_of(read), self.weight)

    def _vectors_of(self, read: Read) -> Tensor:
        """Return the vectors of a read, (N, D), by PyTorch's operators."""
        if read.starts is None or read.pooling == "max":
            return vectors_of(self._rows(read), read)
        assert read.pooling is not None
        return nn.functional.embedding_bag(
            self.row_numbers_of(read),
            self.weight,
            read.starts,
            mode=read.pooling,
            per_sample_weights=None if read.weights is None else read.weights.to(self.weight.dtype),
            include_last_offset=True,
        )


class MakeTables(Protocol):
    """A function that makes the tables of a model: EmbeddingTables, or one that shards the rows."""

    def __call__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
    ) -> Tables: ...


def drawn_blocks(
    num_rows: int, dim: int, bound: float, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """Yield the initial values of a table, U(-bound, bound), in blocks of rows.

    They are the values that are drawn for the whole table at once.

    Args:
        num_rows: Rows of the table.
        dim: Floats of a row.
        bound: The largest absolute value.
        generator: A CPU generator.

    Yields:
        The first row of the block, and its values (rows of the block, dim).
    """
    block_rows = rows_of_block(dim)
    for first in range(0, num_rows, block_rows):
        values = torch.empty(min(block_rows, num_rows - first), dim)
        yield first, values.uniform_(-bound, bound, generator=generator)


def moved_blocks(values: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the values of a table's rows in blocks: the first row of the block, and its values."""
    block_rows = rows_of_block(values[:1].numel())
    for first in range(0, len(values), block_rows):
        yield first, values[first : first + block_rows]


def rows_of_block(dim: int) -> int:
    """Return how many rows of `dim` floats are drawn or moved at once, about 64 MiB."""
    return max(1, BLOCK_BYTES // (FLOAT32_BYTES * dim + INDEX_BYTES))


def _default_bound(num_rows: int) -> float:
    return float(num_rows**-0.5)
