"""The projected part: the time of a step on GPUs, from the placement, its bytes and stated speeds.

Nothing here is measured.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from speed.work import Work

from benchmarks.traffic.traffic_model import Collective, collectives, shares
from common.config.loading import ConfigError
from training.distributed.sharding.placement_report import (
    GATHERED,
    TablePlacement,
    data_parallel_placement,
    rank_totals,
)
from training.distributed.sharding.planner import (
    REPLICATED,
    World,
    choose_kinds,
    place,
    table_placements,
)
from training.models.factory import Group

# One GPU: NVIDIA H200 SXM, data sheet of November 2023
FLOPS = 67e12  # fp32, which the layers are trained in
MEMORY_BYTES_S = 4.8e12
MEMORY_BYTES = 141e9
# Its links: NVLink 4, 900 GB/s for both directions together (same sheet); a 400 Gb/s InfiniBand
# port per GPU (DGX H200)
GPUS_PER_NODE = 8
NVLINK_BYTES_S = 450e9
NETWORK_BYTES_S = 50e9
# Shares of these speeds that are reached. Links: peer-to-peer copies reach 380 of 450 GB/s
# (NVIDIA/nccl#1264). The shares of one half are assumptions.
LINK_SHARE = 0.8
FLOPS_SHARE = MEMORY_SHARE = 0.5
# An assumption: the time of a collective with a small message, on the host and in NCCL
COLLECTIVE_LATENCY_S = 20e-6

BATCH_PER_GPU = 8192
OPTIMIZER = "rowwise_adagrad"
MODES = ("data", "model", "hybrid")


class Case(NamedTuple):
    """A model that is projected: its name, the rows of its tables, and its layers."""

    name: str
    cardinalities: Sequence[int]
    work: Work

    @property
    def dense_bytes(self) -> int:
        """Bytes of the gradients of the dense layers."""
        widths = (self.work.bottom_widths, self.work.top_widths)
        return 4 * sum(
            (num_in + 1) * num_out for of_mlp in widths for num_in, num_out in pairwise(of_mlp)
        )


class Projected(NamedTuple):
    """The projection of a step.

    Attributes:
        num_gpus: Number of GPUs.
        compute_s: Seconds that the slowest GPU computes.
        sending_s: Seconds that the slowest GPU sends.
        inside: Bytes that a GPU sends to others of its node; the largest of all GPUs.
        between: Bytes that a GPU sends to other nodes; the largest of all GPUs.
        tables: Bytes of the tables with the optimizer's state on the fullest GPU.
        gathered: Bytes of the largest message that is gathered from all GPUs.
        kinds: Number of tables of each kind.
    """

    num_gpus: int
    compute_s: float
    sending_s: float
    inside: float
    between: float
    tables: float
    gathered: float
    kinds: dict[str, int]

    @property
    def rows_s(self) -> float:
        """Rows per second without overlap of computing and sending."""
        return self.num_gpus * BATCH_PER_GPU / (self.compute_s + self.sending_s)

    @property
    def rows_s_overlapped(self) -> float:
        """Rows per second with full overlap of computing and sending."""
        return self.num_gpus * BATCH_PER_GPU / max(self.compute_s, self.sending_s)

    @property
    def fits(self) -> bool:
        """Whether tables and messages fit into the memory of a GPU."""
        return self.tables + self.gathered < MEMORY_BYTES


def project(case: Case, mode: str, num_gpus: int) -> Projected | None:
    """Project a case; None if the planner finds no room for the tables."""
    try:
        placement = plan(case, mode, num_gpus)
    except ConfigError:
        return None
    sent = collectives(
        placement, num_gpus * BATCH_PER_GPU, case.dense_bytes, min(num_gpus, GPUS_PER_NODE)
    )
    kinds = sorted({table.kind for table in placement})
    return Projected(
        num_gpus,
        compute_s(case, placement, sent),
        sum(map(sending_s, sent)) if num_gpus > 1 else 0,
        *(float(np.sum([one.sent[link] for one in sent], axis=0).max()) for link in (0, 1)),
        max(rank_totals(placement)),
        most_gathered(placement, num_gpus),
        {kind: sum(table.kind == kind for table in placement) for kind in kinds},
    )


def plan(case: Case, mode: str, num_gpus: int) -> list[TablePlacement]:
    """Return the placement of the tables of a case."""
    groups = [Group(case.cardinalities, case.work.dim)]
    if mode == "data" or num_gpus == 1:
        return data_parallel_placement(groups, OPTIMIZER, num_gpus)
    world = World(
        num_gpus, min(num_gpus, GPUS_PER_NODE), torch.device("cuda"), int(MEMORY_BYTES), 0
    )
    batch_size = num_gpus * BATCH_PER_GPU
    kinds = choose_kinds(groups, mode, batch_size, world)
    placements = place(groups, kinds, OPTIMIZER, batch_size, world)
    return table_placements(groups, placements, OPTIMIZER, num_gpus)


def sending_s(collective: Collective) -> float:
    """Return the seconds of a collective: both links send and receive at the same time."""
    ways = (collective.sent, collective.received)
    slowest = max(
        max(way.inside_n.max() / NVLINK_BYTES_S, way.between_n.max() / NETWORK_BYTES_S)
        for way in ways
    )
    return COLLECTIVE_LATENCY_S + float(slowest) / LINK_SHARE


def compute_s(case: Case, placement: Sequence[TablePlacement], sent: Sequence[Collective]) -> float:
    """Return the seconds that the slowest GPU computes.

    It computes matrix products, and it moves table rows (five times each, see work.py) and
    messages, which are read by the sender and written by the receiver.
    """
    P, n = BATCH_PER_GPU, len(placement[0].rank_bytes)
    moved_n = np.sum([one.sent.total_n + one.received.total_n for one in sent], axis=0)
    for table in placement:
        if table.kind == GATHERED:
            # each GPU looks up its own rows, and updates those of all
            moved_n += 4 * table.dim * P * (2 + 3 * n)
        elif table.kind == REPLICATED:
            moved_n += 4 * table.dim * (5 * P + 3 * table.num_rows)
        else:
            moved_n += 4 * table.dim * 5 * P * n * shares(table)
    products_s = case.work.flop_per_row * P / (FLOPS * FLOPS_SHARE)
    return products_s + float(moved_n.max()) / (MEMORY_BYTES_S * MEMORY_SHARE)


def most_gathered(placement: Sequence[TablePlacement], n: int) -> float:
    """Return the bytes that are gathered from all ranks: the gradients of rows."""
    gathered_dims = [table.dim for table in placement if table.kind == GATHERED]
    return 4.0 * n * BATCH_PER_GPU * sum(gathered_dims)
