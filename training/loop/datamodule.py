"""The features as Lightning wants them: an epoch of Lightning's is the stretch of steps between two validations, and a batch of
Lightning's the steps between two points of the training curve, so that what its loop costs (.4 ms a turn) is not paid for each step."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytorch_lightning as pl

from common.config.params import Train
from features.schema.schema import Schema
from training.loop.batches import Batch, Batches
from training.loop.schedule import Plan

VALID_BATCH_SIZE = 8192  # rows scored together; of no effect on what is learned


class Stretch:
    """The next num_steps of an iterator's batches."""

    def __init__(self, batches: Iterator[Batch], num_steps: int) -> None:
        self.batches, self.num_steps = batches, num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[Batch]:
        return islice(self.batches, self.num_steps)


class Groups:
    """Iterators over the next num_steps of an iterator's batches, each over the next `each` of them."""

    def __init__(self, batches: Iterator[Batch], num_steps: int, each: int) -> None:
        self.batches, self.num_steps, self.each = batches, num_steps, each

    def __len__(self) -> int:
        return -(-self.num_steps // self.each)

    def __iter__(self) -> Iterator[Iterator[Batch]]:
        for start in range(0, self.num_steps, self.each):
            yield islice(self.batches, min(self.each, self.num_steps - start))


class FeatureData(pl.LightningDataModule):
    """directory: artifacts/features. Every rank gets its share of each global batch; a step's batch follows from seed and step alone."""

    def __init__(self, directory: Path, schema: Schema, params: Train) -> None:
        super().__init__()
        self.directory, self.schema, self.params = directory, schema, params

    def batches(self) -> Batches:
        """Of the training rows; one is what a step takes."""
        return self._read(
            "train",
            self.params.batch_size * self.params.accumulate_grad_batches,
            self.params.shuffle_rows,
            self.params.last_days,
        )

    def batch_of(self, step: int) -> Batch:
        """What a step, from 0, takes: all ranks' rows."""
        batches = self.batches()
        batches.rank, batches.world_size = 0, 1
        return next(batches.steps(step, step + 1))

    def start_at(self, step: int, plan: Plan) -> None:
        """The steps that are to come."""
        self.step, self.plan = step, plan

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.coming = self.batches().steps(self.step, self.plan.num_steps)

    def train_dataloader(self) -> Groups:
        """Called for each epoch of Lightning's (reload_dataloaders_every_n_epochs=1)."""
        start, self.step = self.step, self.plan.next_validation(self.step)
        return Groups(self.coming, self.step - start, self._steps_at_once)

    @property
    def _steps_at_once(self) -> int:
        """One where Lightning has to see each step: for its DDP, and for a profile."""
        together = self.trainer is None or self.trainer.world_size == 1
        return self.plan.record_every if together and not self.params.profile else 1

    def val_dataloader(self) -> Stretch:
        batches = self._read("valid", VALID_BATCH_SIZE)
        return Stretch(batches.rounds(), -(-batches.steps_per_epoch // batches.world_size))

    def _read(
        self, split: str, batch_size: int, shuffle_rows: int = 0, last_days: int | None = None
    ) -> Batches:
        rank, world_size = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        return Batches(
            self.directory / split,
            self.schema,
            batch_size=batch_size,
            shuffle_rows=shuffle_rows,
            seed=self.params.seed,
            last_days=last_days,
            rank=rank,
            world_size=world_size,
        )
