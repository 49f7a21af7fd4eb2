"""The projected half: a step's time on GPUs that are not here, from the plan, its bytes and stated speeds. Nothing of it is measured."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from speed.work import Work

from benchmarks.traffic.traffic_model import Collective, collectives, shares
from common.config.loading import ConfigError
from training.distributed.sharding.placement_report import GATHERED, TablePlacement, data_parallel_placement
from training.distributed.sharding.planner import REPLICATED, World, choose_kinds, table_placements, place
from training.models.factory import Group

# One GPU: NVIDIA H200 SXM, data sheet of November 2023
FLOPS = 67e12  # fp32, which the layers are trained in
MEMORY_BYTES_S = 4.8e12
MEMORY_BYTES = 141e9
# Its links: NVLink 4, 900 GB/s both ways together (same sheet); a 400 Gb/s InfiniBand port a GPU (DGX H200)
GPUS_PER_NODE = 8
NVLINK_BYTES_S = 450e9
NETWORK_BYTES_S = 50e9
# What of them is reached. Links: peer-to-peer copies come to 380 of 450 GB/s (NVIDIA/nccl#1264). The halves are assumptions
LINK_SHARE = 0.8
FLOPS_SHARE = MEMORY_SHARE = 0.5
START_S = 20e-6  # of a collective, an assumption: what NCCL takes for a small message, and the host to ask for it

BATCH_PER_GPU = 8192
OPTIMIZER = "rowwise_adagrad"
MODES = ("data", "model", "hybrid")


class Case(NamedTuple):
    name: str
    cardinalities: Sequence[int]
    work: Work

    @property
    def dense_bytes(self) -> int:
        widths = (self.work.bottom_widths, self.work.top_widths)
        return 4 * sum(
            (num_in + 1) * num_out for of_mlp in widths for num_in, num_out in pairwise(of_mlp)
        )


class Projected(NamedTuple):
    """Of the slowest GPU, in seconds and bytes a step. tables: with the optimizer's sums. gathered: the largest message from all GPUs."""

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
        """Nothing sent while anything is computed."""
        return self.num_gpus * BATCH_PER_GPU / (self.compute_s + self.sending_s)

    @property
    def rows_s_overlapped(self) -> float:
        """At best: all of the shorter within the longer."""
        return self.num_gpus * BATCH_PER_GPU / max(self.compute_s, self.sending_s)

    @property
    def fits(self) -> bool:
        return self.tables + self.gathered < MEMORY_BYTES


def project(case: Case, mode: str, num_gpus: int) -> Projected | None:
    """None where the planner says that the tables do not fit."""
    try:
        lines = plan(case, mode, num_gpus)
    except ConfigError:
        return None
    sent = collectives(
        lines, num_gpus * BATCH_PER_GPU, case.dense_bytes, min(num_gpus, GPUS_PER_NODE)
    )
    kinds = sorted({line.kind for line in lines})
    return Projected(
        num_gpus,
        compute_s(case, lines, sent),
        sum(map(sending_s, sent)) if num_gpus > 1 else 0,
        *(float(np.sum([one.sent[link] for one in sent], axis=0).max()) for link in (0, 1)),
        max(map(sum, zip(*(line.rank_bytes for line in lines), strict=True))),
        most_gathered(lines, num_gpus),
        {kind: sum(line.kind == kind for line in lines) for kind in kinds},
    )


def plan(case: Case, mode: str, num_gpus: int) -> list[TablePlacement]:
    groups = [Group(case.cardinalities, case.work.dim)]
    if mode == "data" or num_gpus == 1:
        return data_parallel_placement(groups, OPTIMIZER, num_gpus)
    world = World(
        num_gpus, min(num_gpus, GPUS_PER_NODE), torch.device("cuda"), int(MEMORY_BYTES), 0
    )
    batch_size = num_gpus * BATCH_PER_GPU
    kinds = choose_kinds(groups, mode, batch_size, world)
    return table_placements(groups, place(groups, kinds, OPTIMIZER, batch_size, world), OPTIMIZER, num_gpus)


def sending_s(one: Collective) -> float:
    """Of the slowest rank; both links, either way, at the same time."""
    ways = (one.sent, one.received)
    slowest = max(
        max(way.inside_n.max() / NVLINK_BYTES_S, way.between_n.max() / NETWORK_BYTES_S)
        for way in ways
    )
    return START_S + float(slowest) / LINK_SHARE


def compute_s(case: Case, lines: Sequence[TablePlacement], sent: Sequence[Collective]) -> float:
    """Matrix products; and bytes of table rows that are read and written (work.py counts five times a row), with those of the messages,
    each of which is read here and written there."""
    P, n = BATCH_PER_GPU, len(lines[0].rank_bytes)
    moved_n = np.sum([one.sent.total_n + one.received.total_n for one in sent], axis=0)
    for line in lines:
        if line.kind == GATHERED:
            moved_n += (
                4 * line.dim * P * (2 + 3 * n)
            )  # looked up for itself; the updates are everyone's
        elif line.kind == REPLICATED:
            moved_n += 4 * line.dim * (5 * P + 3 * line.num_rows)
        else:
            moved_n += 4 * line.dim * 5 * P * n * shares(line)
    products_s = case.work.flop_per_row * P / (FLOPS * FLOPS_SHARE)
    return products_s + float(moved_n.max()) / (MEMORY_BYTES_S * MEMORY_SHARE)


def most_gathered(lines: Sequence[TablePlacement], n: int) -> float:
    """What is gathered of all ranks: rows' gradients (data)."""
    return 4.0 * n * BATCH_PER_GPU * sum(line.dim for line in lines if line.kind == GATHERED)
