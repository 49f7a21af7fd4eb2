"""Which rank has which rows of the embedding tables. TorchRec's planner places what the rules here leave open.

Kinds of tables: `replicated` (every rank has it), `table_wise` (whole, on one rank), `row_wise` (rows in equal blocks over all ranks).
Splitting columns is left out: row-wise Adagrad would keep a sum per part of a row, which is other maths.

A table that finds no room on its device lies in the host's memory, with a cache on the device for the rows in use (FBGEMM's managed
caching). A CPU's memory is the host's, so there the same plan has no cache.
"""

import os
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import psutil
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec import EmbeddingCollection, EmbeddingConfig
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError

from common.config.loading import ConfigError
from training.distributed.sharding.placement_report import Line
from training.models.factory import Group
from training.optim.embedding_optimizers import EPS

REPLICATED, TABLE_WISE, ROW_WISE = "replicated", "table_wise", "row_wise"
ROW_UNIT = 4  # floats, of FBGEMM
KERNELS = FUSED, CACHED = ["fused", "fused_uvm_caching"]  # the planner takes the first where it can
FOR_THE_REST = 0.2  # of a rank's memory: what is not table
OPTIMIZERS = {"sgd": EmbOptimType.EXACT_SGD, "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}


class Sharder(EmbeddingCollectionSharder):  # type: ignore[misc]
    """One that offers the same kinds on a CPU as on a GPU; `optimizer` is a name of params.yaml."""

    def __init__(self, optimizer: str) -> None:
        super().__init__(
            fused_params={"optimizer": OPTIMIZERS[optimizer], "eps": EPS, "learning_rate": 0.0}
        )

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [TABLE_WISE, ROW_WISE]


class World(NamedTuple):
    """Ranks, so many of them on each node, and the bytes of memory that each has for tables and all else: of its device, none if that
    is a CPU, and of its share of the host."""

    num_ranks: int
    ranks_per_node: int
    device: torch.device
    device_bytes: int
    host_bytes: int

    @classmethod
    def here(cls, accelerator: str) -> "World":
        """Of this torchrun's worker."""
        ranks_per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        device, device_bytes = torch.device("cpu"), 0
        if accelerator == "gpu":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            device_bytes = torch.cuda.get_device_properties(device).total_memory
        return cls(
            int(os.environ["WORLD_SIZE"]),
            ranks_per_node,
            device,
            device_bytes,
            psutil.virtual_memory().total // ranks_per_node,
        )


class Placed(NamedTuple):
    """Where a group's tables lie: the kind of each, and TorchRec's account of those that are sharded, by name (name_of)."""

    kinds: Sequence[str]
    names: Sequence[str]
    collection: (
        EmbeddingCollection  # on the meta device; its tables and features have the same names
    )
    shardings: Any


def name_of(group: int, table: int) -> str:
    return f"t{group}_{table}"


def choose_kinds(
    groups: Sequence[Group], parallel: str, batch_size: int, world: World
) -> list[list[str]]:
    """The kind of each table.

    Small is a table of no more rows than a rank has of a batch. hybrid replicates it: to add up a gradient of the whole table then takes
    no more bytes than to send each row its vector. model gives it to one rank. Any other is split over all ranks, so that all have equal
    shares of memory and of work, and a rank sends each row that it is asked for, once. FBGEMM takes rows of a multiple of 4 floats:
    hybrid replicates others too. Raises ConfigError where model would have to.
    """
    dims = sorted({group.embedding_dim for group in groups if group.embedding_dim % ROW_UNIT})
    if parallel == "model" and dims:
        raise ConfigError(
            f"params.yaml: train.parallel is model, but rows of {dims[0]} floats cannot be sharded (multiples of {ROW_UNIT} can); change"
            " model.embedding_dim or model.tables, or set train.parallel to hybrid, which replicates such tables"
        )

    def kind(num_rows: int, dim: int) -> str:
        if dim % ROW_UNIT:
            return REPLICATED
        if num_rows <= batch_size // world.num_ranks:
            return REPLICATED if parallel == "hybrid" else TABLE_WISE
        return ROW_WISE

    return [[kind(n, group.embedding_dim) for n in group.cardinalities] for group in groups]


def place(
    groups: Sequence[Group],
    kinds: Sequence[Sequence[str]],
    optimizer: str,
    batch_size: int,
    world: World,
) -> list[Placed]:
    """By TorchRec's planner, which puts each table where it balances the load. Every rank comes to the same.

    Raises ConfigError where the tables do not fit into the ranks' memory.
    """
    names = [[name_of(g, k) for k in range(len(of_group))] for g, of_group in enumerate(kinds)]
    collections = nn.ModuleList(map(_collection, groups, kinds, names))
    constraints = {
        name: ParameterConstraints(sharding_types=[kind], compute_kernels=KERNELS)
        for name, kind in zip(chain(*names), chain(*kinds), strict=True)
    }
    topology = Topology(
        world_size=world.num_ranks,
        local_world_size=world.ranks_per_node,
        compute_device=world.device.type,
        hbm_cap=world.device_bytes,
        ddr_cap=world.host_bytes,
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=max(1, batch_size // world.num_ranks),
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(FOR_THE_REST),
        stats=NoopEmbeddingStats(),
        debug=False,
    )
    try:
        shardings = planner.plan(nn.ModuleDict({"groups": collections}), [Sharder(optimizer)]).plan
    except PlannerError:
        rows, device, host = (
            sum(sum(group.cardinalities) for group in groups),
            world.device_bytes / 2**30,
            world.host_bytes / 2**30,
        )
        raise ConfigError(
            f"params.yaml: {rows:,} rows of embedding tables do not fit into {world.num_ranks} ranks of {device:,.1f} GiB on the device and"
            f" {host:,.1f} GiB of the host each (a fifth is for the rest); raise train.devices, lower model.embedding_dim or raise"
            " features.min_count"
        ) from None
    return [
        Placed(*placed, shardings.get(f"groups.{g}", {}))
        for g, placed in enumerate(zip(kinds, names, collections, strict=True))
    ]


def _collection(group: Group, kinds: Sequence[str], names: Sequence[str]) -> EmbeddingCollection:
    tables = [
        EmbeddingConfig(
            name=name,
            num_embeddings=num_rows,
            embedding_dim=group.embedding_dim,
            feature_names=[name],
        )
        for name, num_rows, kind in zip(names, group.cardinalities, kinds, strict=True)
        if kind != REPLICATED
    ]
    return EmbeddingCollection(tables=tables, device=torch.device("meta"))


def lines_of(
    groups: Sequence[Group], placed: Sequence[Placed], optimizer: str, num_ranks: int
) -> list[Line]:
    """A line for each table, named group.table."""
    lines = []
    for group, where in zip(groups, placed, strict=True):
        row_bytes = 4 * (group.embedding_dim + (optimizer != "sgd"))
        for name, num_rows, kind in zip(where.names, group.cardinalities, where.kinds, strict=True):
            rows = [num_rows if kind == REPLICATED else 0] * num_ranks
            if kind != REPLICATED:
                for shard in where.shardings[name].sharding_spec.shards:
                    rows[shard.placement.rank()] += shard.shard_sizes[0]
                kind += ", cached" if where.shardings[name].compute_kernel == CACHED else ""
            lines.append(
                Line(
                    name.removeprefix("t").replace("_", "."),
                    num_rows,
                    group.embedding_dim,
                    kind,
                    [n * row_bytes for n in rows],
                )
            )
    return lines
