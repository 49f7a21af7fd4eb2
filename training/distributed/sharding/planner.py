"""Decides which rank has which rows of the embedding tables.

The rules here choose the kind of each table; TorchRec's planner chooses the ranks. The kinds are

    replicated   every rank has the whole table
    table_wise   one rank has the whole table
    row_wise     the rows are split into equal blocks over all ranks

Columns are never split: row-wise Adagrad would then keep an accumulator per part of a row, which is
another algorithm.

A table for which a device has no room is kept in the host's memory, with a cache on the device for
the rows in use (FBGEMM's managed caching). The memory of a CPU rank is the host's, so it needs no
cache.
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
from training.distributed.sharding.placement_report import TablePlacement, row_bytes
from training.models.factory import Group
from training.optim.embedding_optimizers import EPS

REPLICATED, TABLE_WISE, ROW_WISE = "replicated", "table_wise", "row_wise"
ROW_MULTIPLE = 4  # FBGEMM takes rows of a multiple of 4 floats
FUSED, CACHED = "fused", "fused_uvm_caching"
KERNELS = [FUSED, CACHED]  # the planner uses the first one for which there is room
RESERVED_MEMORY = 0.2  # share of a rank's memory for everything but tables
OPTIMIZERS = {"sgd": EmbOptimType.EXACT_SGD, "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}


class Sharder(EmbeddingCollectionSharder):  # type: ignore[misc]
    """TorchRec's sharder, with the same kinds of tables on a CPU as on a GPU.

    Args:
        optimizer: Name of the embedding optimizer in params.yaml.
    """

    def __init__(self, optimizer: str) -> None:
        super().__init__(
            fused_params={"optimizer": OPTIMIZERS[optimizer], "eps": EPS, "learning_rate": 0.0}
        )

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the kinds that the planner may choose from."""
        return [TABLE_WISE, ROW_WISE]


class World(NamedTuple):
    """The ranks of a run and their memory.

    Attributes:
        num_ranks: Ranks of all nodes.
        ranks_per_node: Ranks of each node.
        device: Device of this rank.
        device_bytes: Memory of each rank's device; 0 if it is a CPU.
        host_bytes: Each rank's share of its host's memory.
    """

    num_ranks: int
    ranks_per_node: int
    device: torch.device
    device_bytes: int
    host_bytes: int

    @classmethod
    def of_this_worker(cls, accelerator: str) -> "World":
        """Return the world of this process, which torchrun has started."""
        ranks_per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        device, device_bytes = torch.device("cpu"), 0
        if accelerator == "gpu":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            device_bytes = torch.cuda.get_device_properties(device).total_memory
        return cls(
            num_ranks=int(os.environ["WORLD_SIZE"]),
            ranks_per_node=ranks_per_node,
            device=device,
            device_bytes=device_bytes,
            host_bytes=psutil.virtual_memory().total // ranks_per_node,
        )


class Placement(NamedTuple):
    """The placement of a group of tables.

    Attributes:
        kinds: The kind of each table.
        names: The name of each table (`table_name`).
        collection: TorchRec's description of the sharded tables, on the meta device. Its tables and
            features have the same names.
        shardings: TorchRec's plan of the sharded tables, by name.
    """

    kinds: Sequence[str]
    names: Sequence[str]
    collection: EmbeddingCollection
    shardings: Any


def table_name(group: int, table: int) -> str:
    """Return the name of a table for TorchRec, which allows no dots in it."""
    return f"t{group}_{table}"


def choose_kinds(
    groups: Sequence[Group], parallel: str, batch_size: int, world: World
) -> list[list[str]]:
    """Choose the kind of each table.

    A table is small if it has at most as many rows as a rank has of a batch. `hybrid` replicates
    small tables: to add up the gradient of the whole table then takes no more bytes than to send
    each row of the batch its vector. `model` gives a small table to one rank. Other tables are
    row_wise: all ranks then have equal shares of memory and work, and a row that is needed is sent
    once.

    `hybrid` also replicates tables whose rows FBGEMM does not take.

    Args:
        groups: The groups of tables of the model.
        parallel: `hybrid` or `model`.
        batch_size: Rows of a step on all ranks.
        world: The ranks.

    Raises:
        ConfigError: `model` is chosen, and FBGEMM does not take the rows of a group.
    """
    dims = sorted({group.embedding_dim for group in groups if group.embedding_dim % ROW_MULTIPLE})
    if parallel == "model" and dims:
        raise ConfigError(
            f"params.yaml: train.parallel is model, but rows of {dims[0]} floats cannot be sharded"
            f" (multiples of {ROW_MULTIPLE} can); change model.embedding_dim or model.tables, or"
            " set train.parallel to hybrid, which replicates such tables"
        )

    def kind(num_rows: int, dim: int) -> str:
        if dim % ROW_MULTIPLE:
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
) -> list[Placement]:
    """Place the tables by TorchRec's planner, which balances the load; every rank gets the same.

    Args:
        groups: The groups of tables of the model.
        kinds: What `choose_kinds` returned.
        optimizer: Name of the embedding optimizer in params.yaml.
        batch_size: Rows of a step on all ranks.
        world: The ranks.

    Returns:
        A placement for each group.

    Raises:
        ConfigError: The tables do not fit into the memory of the ranks.
    """
    names = [[table_name(g, k) for k in range(len(kinds_k))] for g, kinds_k in enumerate(kinds)]
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
        # FixedPercentageStorageReservation reserves memory of the device only
        ddr_cap=int((1 - RESERVED_MEMORY) * world.host_bytes),
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=max(1, batch_size // world.num_ranks),
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(RESERVED_MEMORY),
        stats=NoopEmbeddingStats(),
        debug=False,
    )
    try:
        shardings = planner.plan(nn.ModuleDict({"groups": collections}), [Sharder(optimizer)]).plan
    except PlannerError:
        num_rows = sum(sum(group.cardinalities) for group in groups)
        raise ConfigError(
            f"params.yaml: {num_rows:,} rows of embedding tables do not fit into {world.num_ranks}"
            f" ranks of {world.device_bytes / 2**30:,.1f} GiB on the device and"
            f" {world.host_bytes / 2**30:,.1f} GiB of the host each (a fifth is for the rest);"
            " raise train.devices, lower model.embedding_dim or raise features.min_count"
        ) from None
    return [
        Placement(kinds[g], names[g], collections[g], shardings.get(f"groups.{g}", {}))
        for g in range(len(groups))
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


def table_placements(
    groups: Sequence[Group], placements: Sequence[Placement], optimizer: str, num_ranks: int
) -> list[TablePlacement]:
    """Return the placement of each table for the report, with the name GROUP.TABLE.

    Args:
        groups: The groups of tables of the model.
        placements: What `place` returned.
        optimizer: Name of the embedding optimizer in params.yaml.
        num_ranks: Number of ranks.
    """
    tables = []
    for g, (group, placement) in enumerate(zip(groups, placements, strict=True)):
        bytes_of_row = row_bytes(group.embedding_dim, optimizer)
        for k, num_rows in enumerate(group.cardinalities):
            kind, name = placement.kinds[k], placement.names[k]
            if kind == REPLICATED:
                rank_rows = [num_rows] * num_ranks
            else:
                sharding = placement.shardings[name]
                rank_rows = [0] * num_ranks
                for shard in sharding.sharding_spec.shards:
                    rank_rows[shard.placement.rank()] += shard.shard_sizes[0]
                if sharding.compute_kernel == CACHED:
                    kind += ", cached"
            rank_bytes = [rows * bytes_of_row for rows in rank_rows]
            tables.append(
                TablePlacement(f"{g}.{k}", num_rows, group.embedding_dim, kind, rank_bytes)
            )
    return tables
