"""Predicts the bytes that each rank sends in a training step, from the placement of the tables.

n ranks, L of them on each node; a rank has b rows of a batch, P is the largest b; a row of a table
has D floats; an id, a length and a float have 4 bytes. A rank sends for an

    all-reduce of S bytes       2 (n-1)/n S   ring: each rank adds up a part and passes it on
                                              (Patarasuk and Yuan 2009, Bandwidth optimal
                                              all-reduce algorithms for clusters of workstations)
    all-gather of S bytes each  (n-1) S       ring
    all-to-all                  what is for the others, directly to each

    message          tables          by
    dense gradients                  all-reduce (DDP)
    ids              gathered        all-gather of P ids per table
                     sharded         all-to-all: a length per table to each rank that may have
                                     rows of it, and b ids to the ranks that have these rows
    sizes            sharded         all-to-all: 3 int64 to each rank
    rows             sharded         all-to-all: D floats for each id that was received
    rows' gradients  sharded         all-to-all in the other direction
                     gathered        all-gather of P D floats
    whole tables     replicated      all-reduce of the tables' gradients

Sharded tables of one kind and dim are sent together. The model leaves out points of the curve (some
bytes), checkpoints, and max_grad_norm, for which sharded tables send what gathered ones do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.distributed.collectives import share
from training.distributed.sharding.placement_report import GATHERED, TablePlacement
from training.distributed.sharding.planner import REPLICATED, ROW_WISE, TABLE_WISE

SIZES_BYTES = 3 * 8
Floats = NDArray[np.float64]


class Bytes(NamedTuple):
    """Bytes of each rank (n,), to or from ranks of its own node, and of other nodes."""

    inside_n: Floats
    between_n: Floats

    @property
    def total_n(self) -> Floats:
        """Bytes of each rank, (n,)."""
        return self.inside_n + self.between_n


class Collective(NamedTuple):
    """A collective: its message, and what each rank sends to and receives from the others."""

    message: str
    sent: Bytes
    received: Bytes


class Nodes(NamedTuple):
    """n ranks, L of them on each node."""

    n: int
    L: int

    def ring(self, message: str, piece: float) -> Collective:
        """Return a collective in which each rank sends n - 1 pieces to the next.

        With several nodes there are L rings, each of which leaves a node by another rank, as in
        NCCL. So a rank sends 1/L of its bytes to the next node.
        """
        total_n = np.full(self.n, (self.n - 1) * piece)
        between_n = total_n / self.L if self.n > self.L else np.zeros(self.n)
        sent = Bytes(total_n - between_n, between_n)
        return Collective(message, sent, received=sent)

    def all_to_all(self, message: str, for_nn: Floats) -> Collective:
        """Return a collective in which rank i sends for_nn[i, j] bytes to rank j."""
        ranks = np.arange(self.n)
        inside_nn = np.where(ranks[:, None] // self.L == ranks // self.L, for_nn, 0)
        between_nn, own_n = for_nn - inside_nn, for_nn[ranks, ranks]
        sent, received = (
            Bytes(inside_nn.sum(axis) - own_n, between_nn.sum(axis)) for axis in (1, 0)
        )
        return Collective(message, sent, received)


def collectives(
    placement: Sequence[TablePlacement], batch_size: int, dense_bytes: int, ranks_per_node: int
) -> list[Collective]:
    """Return the collectives of a training step.

    Ids are assumed to be spread evenly over the rows of a table. Only ids, rows and their gradients
    depend on this.

    Args:
        placement: The placement of the tables.
        batch_size: Rows of a step, of all ranks.
        dense_bytes: Bytes of the gradients of the dense layers.
        ranks_per_node: L.
    """
    nodes = Nodes(len(placement[0].rank_bytes), ranks_per_node)
    sent = [nodes.ring("dense gradients", 2 * dense_bytes / nodes.n)]
    parts = [share(batch_size, rank, nodes.n) for rank in range(nodes.n)]
    b_n = np.array([part.stop - part.start for part in parts])
    if gathered_dims := [table.dim for table in placement if table.kind == GATHERED]:
        P = b_n.max()
        sent += [
            nodes.ring("ids", 4 * P * len(gathered_dims)),
            nodes.ring("rows' gradients", 4 * P * sum(gathered_dims)),
        ]
    replicated = [table for table in placement if table.kind == REPLICATED]
    if replicated:
        num_floats = sum(table.num_rows * table.dim for table in replicated)
        sent.append(nodes.ring("whole tables", 2 * 4 * num_floats / nodes.n))
    for dim in sorted({table.dim for table in placement}):
        for kind in (TABLE_WISE, ROW_WISE):
            group = [table for table in placement if (kind_of(table), table.dim) == (kind, dim)]
            if group:
                sent += _lookup_collectives(group, dim, b_n, nodes)
    return sent


def totals(sent: Sequence[Collective]) -> Floats:
    """Return the bytes that each rank sends, (n,)."""
    sent_n: Floats = np.sum([one.sent.total_n for one in sent], axis=0)
    return sent_n


def kind_of(table: TablePlacement) -> str:
    """Return the kind of a table without `, cached`: a cache does not change what is sent."""
    return table.kind.partition(",")[0]


def shares(table: TablePlacement) -> Floats:
    """Return the share of the rows of a table that each rank has, (n,)."""
    return np.array(table.rank_bytes) / sum(table.rank_bytes)


def _lookup_collectives(
    group: Sequence[TablePlacement], dim: int, b_n: NDArray[np.int64], nodes: Nodes
) -> list[Collective]:
    shares_n = np.sum([shares(table) for table in group], axis=0)
    may_have_n = np.sum(
        [
            shares(table) > 0 if kind_of(table) == TABLE_WISE else np.ones(nodes.n)
            for table in group
        ],
        axis=0,
    )
    ids_nn = b_n[:, None] * shares_n  # from rank i to rank j
    return [
        nodes.all_to_all("sizes", np.full((nodes.n, nodes.n), float(SIZES_BYTES))),
        nodes.all_to_all("ids", np.tile(4.0 * may_have_n, (nodes.n, 1))),
        nodes.all_to_all("ids", 4 * ids_nn),
        nodes.all_to_all("rows", 4 * dim * ids_nn.T),
        nodes.all_to_all("rows' gradients", 4 * dim * ids_nn),
    ]
