"""A table server: an actor with a share of the rows of every embedding table, and their optimizer.

Shapes: T tables of a group, D embedding dim, U distinct rows of a step, H rows of a group that the
server has.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.bundle_layout import STATE
from common.config.params import Params
from common.layout import FEATURES
from features.encode.feature_state import FeatureState
from training.distributed.sharding.row_permutation import positions_of, stride_of
from training.distributed.sharding.table_files import read_blocks, write_blocks
from training.models.embedding_tables import EmbeddingTables, Tables, drawn_blocks
from training.models.factory import make_model
from training.optim.embedding_optimizers import EmbeddingOptimizer, make_embedding_optimizer
from training.servers.applied_steps import AppliedSteps
from training.servers.row_placement import blocks_of

Rows = Sequence[NDArray[np.int64]]  # for each group the places of rows on the server, (U,)
Vectors = Sequence[NDArray[np.float32]]  # for each group an array (U, D)


class TableServer:
    """Has the server's block of each table, looks rows up and updates them.

    Args:
        params: The parameters of params.yaml.
        root: The directory with artifacts/.
        server: The number of the server, from 0.
        num_servers: The number of servers.
    """

    def __init__(self, params: Params, root: Path, server: int, num_servers: int) -> None:
        self.server, self.num_servers = server, num_servers
        self.train = params.train
        self.steps = AppliedSteps(waits=self.train.servers.staleness == 0)
        state = FeatureState.load(root / FEATURES / STATE)
        model = make_model(params, state, self._make_block)
        self.groups: list[TableBlocks] = []
        for tables in model.embeddings.tables:
            assert isinstance(tables, TableBlocks)
            self.groups.append(tables)

    def _make_block(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
    ) -> Tables:
        return TableBlocks(
            cardinalities,
            embedding_dim,
            generator,
            bounds,
            server=self.server,
            num_servers=self.num_servers,
            optimizer=self.train.embedding_optimizer.name,
            with_means=self.train.averages_epochs,
        )

    def pull(self, step: int | None, rows: Rows) -> Vectors:
        """Return the rows at these places.

        Args:
            step: The step that begins; None for validation rows.
            rows: The places of the rows.
        """
        self.steps.begin(step)
        return [group.pull(of_group) for group, of_group in zip(self.groups, rows, strict=True)]

    def push(self, step: int, lr: float, rows: Rows, grads: Vectors) -> None:
        """Update rows by their gradients, once for each step.

        Args:
            step: The step that the gradients are of, counted over epochs.
            lr: The learning rate.
            rows: The places of the rows, each once.
            grads: The gradient of each row.
        """

        def apply() -> None:
            for group, of_group, grads_UD in zip(self.groups, rows, grads, strict=True):
                group.push(of_group, grads_UD, lr)

        self.steps.push(step, apply)

    def barrier(self) -> None:
        """Apply all gradients that have come; no step of before is pushed again."""
        self.steps.barrier()

    def reset_rows(self, group: int) -> None:
        """Give the rows of a group their initial values."""
        self.steps.clear()
        self.groups[group].reset_parameters()

    def reset_optimizer(self, group: int) -> None:
        """Give the optimizer of a group an empty state."""
        self.groups[group].optimizer.reset_parameters(self.groups[group].held)

    def average_epoch(self, epoch: int) -> None:
        """Add the rows to their mean over epochs, and copy the mean to the rows.

        Args:
            epoch: The epoch that ends, from 1; the second one is the first that counts.
        """
        for group in self.groups:
            group.average_epoch(epoch)

    def load_rows(
        self,
        group: int,
        table: int,
        kind: str,
        places: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> None:
        """Set something of what the server has of a table.

        Args:
            group: The number of the group.
            table: The number of the table in the group.
            kind: `weight`, `sums` or `mean`.
            places: The rows of the server's block that get a value.
            values: The value of each.
        """
        part = self.groups[group].parts()[f"{table}.{kind}"]
        part[tensor_of(places)] = tensor_of(values)

    def write(self, directory: Path) -> dict[str, int]:
        """Write all blocks into a directory; returns the CRC-32 of each file."""
        return write_blocks(directory, self.server, dict(self._blocks()))

    def read(self, directory: Path) -> None:
        """Read all blocks from a directory that any number of servers or ranks has written."""
        self.steps.clear()
        read_blocks(directory, dict(self._blocks()))

    def ping(self) -> None:
        """Answer."""

    def num_bytes(self) -> list[list[int]]:
        """Return for each group the bytes of the block of each table, with the optimizer's."""
        return [group.num_bytes() for group in self.groups]

    def _blocks(self) -> Iterator[tuple[str, tuple[int, Tensor]]]:
        """Yield GROUP.TABLE.KIND, the first position of the block, and the block."""
        for g, group in enumerate(self.groups):
            for name, part in group.parts().items():
                table, _, _ = name.partition(".")
                yield f"{g}.{name}", (group.blocks[int(table)].start, part)


class TableBlocks(Tables):
    """The blocks that a server has of a group of tables.

    Args:
        cardinalities: The number of rows of each table, (T,).
        embedding_dim: D.
        generator: Draws the initial values of all rows, one block of rows after the other.
        bounds: As of Tables.
        server: The number of the server.
        num_servers: The number of servers.
        optimizer: The name of the embedding optimizer in params.yaml.
        with_means: Whether the means of the rows over epochs are kept.

    Attributes:
        blocks: The positions of each table that the server has.
        held: The rows at these positions, one table after the other, as one table of H rows.
        means: The means of the rows over epochs, (H, D); None unless they are kept.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
        *,
        server: int,
        num_servers: int,
        optimizer: str,
        with_means: bool,
    ) -> None:
        super().__init__(cardinalities, embedding_dim, generator, bounds)
        self.blocks = blocks_of(cardinalities, server, num_servers)
        starts = accumulate((block.stop - block.start for block in self.blocks), initial=0)
        self.places = list(pairwise(starts))
        num_held = self.places[-1][1]
        self.held = EmbeddingTables([num_held], embedding_dim, torch.Generator(), bounds=[1.0])
        self.optimizer: EmbeddingOptimizer = make_embedding_optimizer(optimizer, self.held)
        self.means = torch.zeros_like(self.held.weight) if with_means else None
        self._draw(generator)

    def _draw(self, generator: torch.Generator) -> None:
        for k, ((start, end), bound) in enumerate(zip(self.spans, self.bounds, strict=True)):
            num_rows, block = end - start, self.blocks[k]
            place, last = self.places[k]
            held = self.held.weight[place:last]
            for first, values in drawn_blocks(num_rows, self.embedding_dim, bound, generator):
                rows = torch.arange(first, first + len(values))
                places = positions_of(rows, k, num_rows, stride_of(num_rows)) - block.start
                is_here = (places >= 0) & (places < len(held))
                held[places[is_here]] = values[is_here]

    def pull(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows at these places, (U, D)."""
        vectors_UD: Tensor = self.held(tensor_of(rows).unsqueeze(1)).squeeze(1)
        return vectors_UD.numpy()

    @torch.no_grad()
    def push(self, rows: NDArray[np.int64], grads: NDArray[np.float32], lr: float) -> None:
        """Update the rows at these places by their gradients (U, D)."""
        if len(rows):
            rows_U1, grad_U1D = tensor_of(rows).unsqueeze(1), tensor_of(grads).unsqueeze(1)
            self.optimizer.step(self.held, rows_U1, grad_U1D, lr)

    @torch.no_grad()
    def average_epoch(self, epoch: int) -> None:
        """Do what `TableServer.average_epoch` says."""
        assert self.means is not None
        self.means.lerp_(self.held.weight, 1 / (epoch - 1))
        self.held.weight.copy_(self.means)

    def parts(self) -> dict[str, Any]:
        """Return what there is of each block: `k.weight`, `k.sums` and `k.mean`, without a copy."""
        all_held = {"weight": self.held.weight.data}
        all_held |= dict(self.optimizer.named_buffers())
        if self.means is not None:
            all_held["mean"] = self.means
        return {
            f"{k}.{kind}": values[first:last]
            for kind, values in all_held.items()
            for k, (first, last) in enumerate(self.places)
        }

    def num_bytes(self) -> list[int]:
        """Return the bytes of each table's block, with those of the optimizer."""
        totals = [0] * len(self.places)
        for name, part in self.parts().items():
            totals[int(name.partition(".")[0])] += part.numel() * part.itemsize
        return totals


def tensor_of(array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor; it shares the memory of the array unless that is read-only."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
