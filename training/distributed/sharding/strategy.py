"""Lightning's strategy of hybrid-parallel training.

The dense layers are on every rank; the embedding tables are distributed over the ranks.
"""

import logging
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy

from common.config.params import Train
from training.distributed.sharding.planner import (
    Placement,
    World,
    choose_kinds,
    place,
    table_placements,
)
from training.distributed.sharding.sharded_tables import ShardedTables
from training.models.embedding_tables import Tables
from training.models.factory import Group


class HybridStrategy(DDPStrategy):
    """DDP for the dense layers, and `make_tables`, which makes tables that DDP does not see.

    It is made in each of torchrun's workers before the model is, because no rank has all tables.

    Args:
        groups: The groups of tables of the model.
        kinds: The kind of each table (planner.py).
        params: The section `train`.
        world: The ranks.
        timeout: How long a collective operation may take.

    Attributes:
        placement: Where the rows of each table are.

    Raises:
        ConfigError: The tables do not fit into the memory of the ranks.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        kinds: Sequence[Sequence[str]],
        params: Train,
        world: World,
        timeout: timedelta,
    ) -> None:
        super().__init__(timeout=timeout, broadcast_buffers=False)
        for name in ("torchrec", "torch.fx"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if not dist.is_initialized():
            backend = "gloo"
            if world.device.type == "cuda":
                torch.cuda.set_device(world.device)
                backend = "nccl"
            dist.init_process_group(backend, timeout=timeout)
        self.device = world.device
        self.optimizer_name = params.embedding_optimizer.name
        rows_per_step = params.batch_size * params.accumulate_grad_batches
        group_placements = place(groups, kinds, self.optimizer_name, rows_per_step, world)
        self.placement = table_placements(
            groups, group_placements, self.optimizer_name, world.num_ranks
        )
        self._remaining_groups: Iterator[Placement] = iter(group_placements)

    @classmethod
    def for_model(
        cls,
        groups: Sequence[Group],
        params: Train,
        accelerator: str,
        timeout: timedelta,
    ) -> "HybridStrategy":
        """Make the strategy of a model; the kinds of its tables follow from train.parallel."""
        world = World.of_this_worker(accelerator)
        rows_per_step = params.batch_size * params.accumulate_grad_batches
        kinds = choose_kinds(groups, params.parallel, rows_per_step, world)
        return cls(groups, kinds, params, world, timeout)

    def make_tables(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
    ) -> Tables:
        """Make the next group of tables: a MakeTables, called in the order of `groups_of`."""
        return ShardedTables(
            cardinalities,
            embedding_dim,
            generator,
            bounds,
            placement=next(self._remaining_groups),
            optimizer=self.optimizer_name,
            device=self.device,
        )
