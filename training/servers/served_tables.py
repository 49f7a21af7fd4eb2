"""Embedding tables whose rows are on table servers, as the driver sees them."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from training.distributed.sharding.row_permutation import positions_of, stride_of
from training.loop.weight_averaging import EpochMean
from training.models.dlrm import DLRM
from training.models.embedding_tables import Tables, drawn_blocks, moved_blocks
from training.optim.embedding_optimizers import EmbeddingOptimizer
from training.servers.row_placement import blocks_of


class CallServers(Protocol):
    """Calls a method of all table servers (`Session.call_tables`)."""

    def __call__(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the results of the servers, for the arguments of each."""


class ServedPart(NamedTuple):
    """A handle for the values that the servers have for each row of a table.

    Attributes:
        kind: `weight`, `sums` or `mean`.
    """

    kind: str


class ServedTables(Tables):
    """A group of tables on servers. The driver looks up no rows: workers do.

    Args:
        cardinalities: As of Tables; likewise the next three.
        embedding_dim: D.
        generator: It is left as it is after the initial values of all rows have been drawn.
        bounds: The bounds of the initial values.
        call: Calls a method of all table servers.
        num_servers: The number of table servers.
        has_sums: Whether the optimizer has a sum for each row.

    Attributes:
        group: The number of the group, which `Session.take_tables` sets.
    """

    group: int

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
        *,
        call: CallServers,
        num_servers: int,
        has_sums: bool,
    ) -> None:
        super().__init__(cardinalities, embedding_dim, generator, bounds)
        self.call, self.num_servers, self.has_sums = call, num_servers, has_sums
        for start, end in self.spans:  # the weights that are drawn next are those of one device
            for _ in drawn_blocks(end - start, embedding_dim, 1.0, generator):
                pass

    def reset_parameters(self) -> None:
        """Let the servers give all rows their initial values."""
        self.call("reset_rows", [(self.group,)] * self.num_servers)

    def reset_optimizer(self) -> None:
        """Let the servers give the optimizer an empty state."""
        self.call("reset_optimizer", [(self.group,)] * self.num_servers)

    def parts(self) -> dict[str, Any]:
        """Return a handle for the rows of each table, for `load_rows`."""
        return self.parts_of_kind("weight")

    def parts_of_kind(self, kind: str) -> dict[str, Any]:
        """Return a handle for what the servers have of each table, `k.KIND`."""
        return {f"{k}.{kind}": ServedPart(kind) for k in range(len(self.spans))}

    def load_rows(self, k: int, part: Any, values: Tensor) -> None:
        """Send values, one for each row of table k or of its first rows, to the servers."""
        assert isinstance(part, ServedPart)
        start, end = self.spans[k]
        num_rows = end - start
        held = [
            blocks_of([num_rows], server, self.num_servers)[0] for server in range(self.num_servers)
        ]
        for first, some in moved_blocks(values):
            rows = torch.arange(first, first + len(some))
            positions = positions_of(rows, k, num_rows, stride_of(num_rows))
            arguments: list[tuple[Any, ...]] = []
            for block in held:
                is_here = (positions >= block.start) & (positions < block.stop)
                places = positions[is_here] - block.start
                arrays = places.numpy(), some[is_here].numpy()
                arguments.append((self.group, k, part.kind, *arrays))
            self.call("load_rows", arguments)

    def make_optimizer(self) -> "ServedOptimizer":
        """Return the handle of the optimizer that the servers run."""
        return ServedOptimizer()


class ServedOptimizer(EmbeddingOptimizer):
    """The optimizer of tables on servers, which run it when gradients come."""

    def reset_parameters(self, tables: Tables) -> None:
        """Let the servers give the optimizer an empty state."""
        assert isinstance(tables, ServedTables)
        tables.reset_optimizer()

    def parts(self, tables: Tables) -> dict[str, Any]:
        """Return a handle for the sums of each table, `k.sums`; an empty dict for SGD."""
        assert isinstance(tables, ServedTables)
        return tables.parts_of_kind("sums") if tables.has_sums else {}


class ServedEpochMean(EpochMean):
    """The mean of the weights over epochs; that of the tables is on the servers."""

    def _make_rows(self, averaged_model: DLRM) -> None:
        """Make nothing: the servers have made the means of their rows."""
        self.rows = nn.ParameterList()

    def parts(self, averaged_model: DLRM) -> list[dict[str, Any]]:
        """Return a handle for the means of each table, named as in `Tables.parts`."""
        return [
            {f"{k}.weight": ServedPart("mean") for k in range(len(tables.spans))}
            for tables in _served(averaged_model)
        ]

    @torch.no_grad()
    def update(self, averaged_model: DLRM, epoch: int) -> None:
        """Add the weights of an epoch's end to the mean, on the servers too."""
        tables = _served(averaged_model)[0]  # of any group: the servers average all of them
        tables.call("average_epoch", [(epoch,)] * tables.num_servers)
        self._update_dense(averaged_model, epoch)


def _served(model: DLRM) -> list[ServedTables]:
    return [tables for tables in model.embeddings.tables if isinstance(tables, ServedTables)]
