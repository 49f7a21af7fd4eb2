"""What a training step sends: bytes that leave each rank, by collective, from the plan of the tables alone.

n ranks, L on each node; b rows that a rank has of a batch, P the largest such share; D floats of a row; 4 bytes an id, a length, a float.
A rank sends

    all-reduce of S bytes      2 (n-1)/n S    ring: each rank adds up a part, then hands it on (Patarasuk and Yuan 2009)
    all-gather of S bytes each (n-1) S        ring
    all-to-all                 what is for the others, straight to each

    message          tables          by
    dense gradients                  all-reduce (DDP)
    ids              gathered        all-gather of P ids a table
                     sharded         all-to-all: a length a table to each rank that may have a row, b ids to those that do
    sizes            sharded         all-to-all: 3 int64 to each rank
    rows             sharded         all-to-all: D floats for each id that came
    rows' gradients  sharded         the same way back
                     gathered        all-gather of P D floats
    whole tables     replicated      all-reduce of the tables' gradients

Sharded tables of one kind and dim travel together. Not in it: a point of the curve (some bytes), checkpoints, and max_grad_norm, for whose
norm sharded tables send what gathered ones do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.distributed.sharding.placement_report import GATHERED, TablePlacement
from training.distributed.sharding.planner import REPLICATED, ROW_WISE, TABLE_WISE
from training.loop.batches import share

SIZES_BYTES = 3 * 8
Floats = NDArray[np.float64]


class Bytes(NamedTuple):
    """Of each rank, to or from ranks of its own node and of others."""

    inside_n: Floats
    between_n: Floats

    @property
    def total_n(self) -> Floats:
        return self.inside_n + self.between_n


class Collective(NamedTuple):
    """Nothing that stays on its rank is in it."""

    message: str
    sent: Bytes
    received: Bytes


class Nodes(NamedTuple):
    """n ranks, L on each node."""

    n: int
    L: int

    def ring(self, message: str, piece: float) -> Collective:
        """Each rank sends n - 1 pieces to the next. Of several nodes: L rings, each of which leaves a node by another rank, as NCCL lays
        them, so that a rank sends 1/L of its bytes to the next node."""
        total_n = np.full(self.n, (self.n - 1) * piece)
        between_n = total_n / self.L if self.n > self.L else np.zeros(self.n)
        sent = Bytes(total_n - between_n, between_n)
        return Collective(message, sent, received=sent)

    def all_to_all(self, message: str, for_nn: Floats) -> Collective:
        """for_nn: from whom, for whom; what is for oneself stays."""
        ranks = np.arange(self.n)
        inside_nn = np.where(ranks[:, None] // self.L == ranks // self.L, for_nn, 0)
        between_nn, own_n = for_nn - inside_nn, for_nn[ranks, ranks]
        sent, received = (
            Bytes(inside_nn.sum(axis) - own_n, between_nn.sum(axis)) for axis in (1, 0)
        )
        return Collective(message, sent, received)


def collectives(
    lines: Sequence[TablePlacement], batch_size: int, dense_bytes: int, ranks_per_node: int
) -> list[Collective]:
    """Of a step of batch_size rows (times train.accumulate_grad_batches) of all ranks, with dense layers of dense_bytes. Ids are taken to be spread
    evenly over a table's rows: what they and their rows come to depends on the data, and nothing else does."""
    nodes = Nodes(len(lines[0].rank_bytes), ranks_per_node)
    found = [nodes.ring("dense gradients", 2 * dense_bytes / nodes.n)]
    parts = [share(batch_size, rank, nodes.n) for rank in range(nodes.n)]
    b_n = np.array([part.stop - part.start for part in parts])
    if gathered := [line.dim for line in lines if line.kind == GATHERED]:
        P = b_n.max()
        found += [
            nodes.ring("ids", 4 * P * len(gathered)),
            nodes.ring("rows' gradients", 4 * P * sum(gathered)),
        ]
    if whole := [line.num_rows * line.dim for line in lines if line.kind == REPLICATED]:
        found.append(nodes.ring("whole tables", 2 * 4 * sum(whole) / nodes.n))
    for dim in sorted({line.dim for line in lines}):
        for kind in (TABLE_WISE, ROW_WISE):
            if alike := [line for line in lines if (kind_of(line), line.dim) == (kind, dim)]:
                found += _looked_up(alike, dim, b_n, nodes)
    return found


def totals(sent: Sequence[Collective]) -> Floats:
    """Bytes that leave each rank, (n,)."""
    sent_n: Floats = np.sum([one.sent.total_n for one in sent], axis=0)
    return sent_n


def kind_of(line: TablePlacement) -> str:
    """A cache makes no difference to what is sent."""
    return line.kind.partition(",")[0]


def shares(line: TablePlacement) -> Floats:
    """Of the table's rows, that each rank has; (n,)."""
    return np.array(line.rank_bytes) / sum(line.rank_bytes)


def _looked_up(
    alike: Sequence[TablePlacement], dim: int, b_n: NDArray[np.int64], nodes: Nodes
) -> list[Collective]:
    shares_n = np.sum([shares(line) for line in alike], axis=0)
    may_have_n = np.sum(
        [shares(line) > 0 if kind_of(line) == TABLE_WISE else np.ones(nodes.n) for line in alike],
        axis=0,
    )
    ids_nn = b_n[:, None] * shares_n  # from whom, to whom
    return [
        nodes.all_to_all("sizes", np.full((nodes.n, nodes.n), float(SIZES_BYTES))),
        nodes.all_to_all("ids", np.tile(4.0 * may_have_n, (nodes.n, 1))),
        nodes.all_to_all("ids", 4 * ids_nn),
        nodes.all_to_all("rows", 4 * dim * ids_nn.T),
        nodes.all_to_all("rows' gradients", 4 * dim * ids_nn),
    ]
