"""Lightning's strategy of hybrid-parallel training: dense layers on every rank, embedding tables spread over the ranks."""

import logging
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy

from common.config.model import Model
from common.config.params import Train
from training.distributed.sharding.planner import Placed, World, choose_kinds, lines_of, place
from training.distributed.sharding.sharded_tables import ShardedTables
from training.models.embedding_tables import Tables
from training.models.factory import Group, groups_of


class HybridStrategy(DDPStrategy):
    """DDP for the dense layers; make_tables makes the model's tables, which DDP knows nothing of.

    Made in each of torchrun's workers before the model is, since its tables are never whole in one place. kinds: of each group's tables
    (training/distributed/sharding/planner.py). Raises ConfigError for tables that do not fit into memory.
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
            if world.device.type == "cuda":
                torch.cuda.set_device(world.device)
            dist.init_process_group(
                "nccl" if world.device.type == "cuda" else "gloo", timeout=timeout
            )
        rows_of_step = params.batch_size * params.accumulate_grad_batches
        self.optimizer_name, self.device = params.embedding_optimizer.name, world.device
        self.placed = place(groups, kinds, self.optimizer_name, rows_of_step, world)
        self.plan = lines_of(groups, self.placed, self.optimizer_name, world.num_ranks)
        self._next: Iterator[Placed] = iter(self.placed)

    @classmethod
    def of(
        cls,
        model: Model,
        params: Train,
        cardinalities: Sequence[int],
        accelerator: str,
        timeout: timedelta,
    ) -> "HybridStrategy":
        """For a model of params.yaml; the kinds of its tables follow from train.parallel and their sizes."""
        world, groups = World.here(accelerator), groups_of(model, cardinalities)
        kinds = choose_kinds(
            groups, params.parallel, params.batch_size * params.accumulate_grad_batches, world
        )
        return cls(groups, kinds, params, world, timeout)

    def make_tables(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        bounds: Sequence[float] | None = None,
    ) -> Tables:
        """The next group of tables, in the order in which the model makes them (training.models.tables.MakeTables)."""
        return ShardedTables(
            cardinalities,
            embedding_dim,
            generator,
            bounds,
            placed=next(self._next),
            optimizer=self.optimizer_name,
            device=self.device,
        )
