"""What a training step sends: bytes that leave each rank, by collective, from the plan of the tables alone.

n ranks, L on each node, N nodes; P rows that a rank sends for whatever it has of a batch (the largest share), b that it has;
D floats of a row, of all tables in question together; 4 bytes an id, a length, a float. A rank sends

    all-reduce of S bytes      2 (n-1)/n S    ring: each rank adds up a part, then hands it on (Patarasuk and Yuan 2009)
    reduce-scatter of S bytes  (n-1)/n S      the first half of that; gloo has none and takes a whole all-reduce
    all-gather of S bytes each (n-1) S        ring
    all-to-all                 what is for the others, straight to each

    message          tables          by
    dense gradients                  all-reduce (DDP)
    ids              gathered        all-gather of P ids a table
                     sharded         all-to-all: P lengths a table to each rank that may have a row, b ids to those that do
    sizes            sharded         all-to-all: 3 int64 to each rank
    rows             table_wise      all-to-all: of each table here, P rows to each rank
                     row_wise        reduce-scatter of n P D floats: all ranks' rows, 0 where another rank has the row
                     table_row_wise  the same of N L P D in the node, then all-to-all of P D to each other node
    rows' gradients                  the same ways back, by all-to-all and all-gather
                     gathered        all-gather of P D floats
    whole tables     replicated      all-reduce of the tables' gradients

Sharded tables of one kind and dim travel together. Not in it: a point of the curve (some bytes), checkpoints, and clip_norm, for whose
norm sharded tables send what gathered ones do.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.batches import share
from training.sharding.lines import Line
from training.sharding.plan import REPLICATED, ROW_WISE, TABLE_ROW_WISE, TABLE_WISE, Group

GATHERED = "gathered"  # train.parallel data: each rank has the table, and hears of every other's rows
ASKED = "asked"  # if an id and its row went between the asking rank and the one that has it, and nothing else: there is no such path
SIZES_BYTES = 3 * 8
Backend = Literal["nccl", "gloo"]
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
        sent, received = (Bytes(inside_nn.sum(axis) - own_n, between_nn.sum(axis)) for axis in (1, 0))
        return Collective(message, sent, received)

    def node_of(self, rank: int) -> slice:
        first = rank - rank % self.L
        return slice(first, first + self.L)


def gathered_lines(groups: Sequence[Group], optimizer: str, num_ranks: int) -> list[Line]:
    """The plan of train.parallel data, which has none."""
    return [
        Line(f"{g}.{k}", num_rows, group.embedding_dim, GATHERED, [4 * num_rows * (group.embedding_dim + (optimizer != "sgd"))] * num_ranks)
        for g, group in enumerate(groups)
        for k, num_rows in enumerate(group.cardinalities)
    ]


def collectives(
    lines: Sequence[Line], batch_size: int, dense_bytes: int, ranks_per_node: int, backend: Backend = "nccl"
) -> list[Collective]:
    """Of a step of batch_size rows (times train.accumulate) of all ranks, with dense layers of dense_bytes. Ids are taken to be spread
    evenly over a table's rows; they alone depend on the data."""
    nodes = Nodes(len(lines[0].rank_bytes), ranks_per_node)
    found = [nodes.ring("dense gradients", 2 * dense_bytes / nodes.n)]
    P = -(-batch_size // nodes.n)
    if gathered := [line.dim for line in lines if line.kind == GATHERED]:
        found += [nodes.ring("ids", 4 * P * len(gathered)), nodes.ring("rows' gradients", 4 * P * sum(gathered))]
    if whole := [line.num_rows * line.dim for line in lines if line.kind == REPLICATED]:
        found.append(nodes.ring("whole tables", 2 * 4 * sum(whole) / nodes.n))
    for dim in sorted({line.dim for line in lines}):
        for kind in (TABLE_WISE, ROW_WISE, TABLE_ROW_WISE, ASKED):
            if alike := [line for line in lines if (kind_of(line), line.dim) == (kind, dim)]:
                found += _ids(alike, batch_size, nodes)
                found += _rows(kind, alike, P, nodes, 2 if backend == "gloo" else 1)
    return found


def totals(sent: Sequence[Collective]) -> Floats:
    """Bytes that leave each rank, (n,)."""
    sent_n: Floats = np.sum([one.sent.total_n for one in sent], axis=0)
    return sent_n


def kind_of(line: Line) -> str:
    """A cache makes no difference to what is sent."""
    return line.kind.partition(",")[0]


def shares(line: Line) -> Floats:
    """Of the table's rows, that each rank has; (n,)."""
    return np.array(line.rank_bytes) / sum(line.rank_bytes)


def _asked(line: Line, nodes: Nodes) -> slice:
    """The ranks that are sent lengths: they may have no row."""
    first = next(rank for rank, num_bytes in enumerate(line.rank_bytes) if num_bytes)
    return {TABLE_WISE: slice(first, first + 1), TABLE_ROW_WISE: nodes.node_of(first)}.get(kind_of(line), slice(nodes.n))


def _ids(alike: Sequence[Line], batch_size: int, nodes: Nodes) -> list[Collective]:
    parts = [share(batch_size, rank, nodes.n) for rank in range(nodes.n)]
    b_n = np.array([part.stop - part.start for part in parts])
    tables_n = np.zeros(nodes.n)
    for line in alike:
        if line.kind != ASKED:
            tables_n[_asked(line, nodes)] += 1
    ids_n = np.sum([shares(line) for line in alike], axis=0)
    return [
        nodes.all_to_all("sizes", np.full((nodes.n, nodes.n), float(SIZES_BYTES))),
        nodes.all_to_all("ids", np.tile(4 * b_n.max() * tables_n, (nodes.n, 1))),
        nodes.all_to_all("ids", 4 * b_n[:, None] * ids_n),
    ]


def _rows(kind: str, alike: Sequence[Line], P: int, nodes: Nodes, reduce_scatter: int) -> list[Collective]:
    """reduce_scatter: its bytes by those that it has to send."""
    if kind == ROW_WISE:
        D = sum(line.dim for line in alike)
        return [nodes.ring("rows", reduce_scatter * 4 * P * D), nodes.ring("rows' gradients", 4 * P * D)]
    if kind == TABLE_ROW_WISE:
        dims_n = np.zeros(nodes.n)
        for line in alike:
            dims_n[_asked(line, nodes)] += line.dim
        none_n, num_nodes = np.zeros(nodes.n), nodes.n // nodes.L
        gathered = Bytes(4 * (nodes.L - 1) * num_nodes * P * dims_n, none_n)
        scattered = Bytes(reduce_scatter * gathered.inside_n, none_n)
        to_others = Bytes(none_n, 4 * (num_nodes - 1) * P * dims_n)
        from_others = Bytes(none_n, 4 * P * (dims_n[:: nodes.L].sum() - dims_n))
        return [
            Collective("rows", scattered, scattered),
            Collective("rows", to_others, from_others),
            Collective("rows' gradients", from_others, to_others),
            Collective("rows' gradients", gathered, gathered),
        ]
    rows_nn = np.tile(4 * P * np.sum([line.dim * shares(line) for line in alike], axis=0), (nodes.n, 1))
    return [nodes.all_to_all("rows", rows_nn.T), nodes.all_to_all("rows' gradients", rows_nn)]
