"""The LightningModule and the data of the driver, whose steps are those of the workers.

The Trainer, its callbacks, the checkpoints and the training curve are those of every other run: a
training step of the driver waits until a worker's step has been applied. The steps are cut into
segments, which end at points of the training curve, and at each validation. At the end of a segment
is a barrier, where all steps are applied and the driver takes over the dense weights.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor

from training.distributed.sharding.table_checkpoint import Saved, restore
from training.loop.averaging_callback import WeightAveraging
from training.loop.batches import Batches
from training.loop.datamodule import FeatureData, TrainLoader
from training.loop.lightning_module import TrainDLRM
from training.loop.weight_averaging import EpochMean, dense_weights
from training.models.dlrm import DLRM
from training.servers.dense_server import (
    flatten,
    load_optimizer_state,
    optimizer_state_of,
    unflatten,
)
from training.servers.served_tables import ServedEpochMean
from training.servers.session import DenseState, Session
from training.servers.worker import Scores

SEGMENT_S = 2.0  # of a segment, about: a barrier takes some hundredths of a second
MAX_POINTS = 100


class PlannedBatch(NamedTuple):
    """A step, or a batch of validation rows, whose rows a worker reads.

    Attributes:
        num_rows: The number of its rows.
    """

    num_rows: int


class ServedDLRM(TrainDLRM):
    """A DLRM whose steps are computed by workers.

    Args:
        session: The actors.
        args: As of TrainDLRM.
    """

    def __init__(self, session: Session, *args: Any) -> None:
        super().__init__(*args)
        self.session = session
        self.segment_stop = 0
        self.segment_points = 1  # of the training curve
        self.segment_begun_s = 0.0
        self.scores: Iterator[Scores] = iter(())

    def make_epoch_mean(self, averaged_model: DLRM) -> EpochMean:
        """Make the mean of the averaged weights over epochs, with that of the tables on servers."""
        return ServedEpochMean(averaged_model)

    def configure_callbacks(self) -> list[pl.Callback]:
        """Replace the callback of averages: the dense server updates them after each step."""
        return [
            ServedWeightAveraging(self.model, callback.averaged_model, callback.epoch_mean)
            if isinstance(callback, WeightAveraging)
            else callback
            for callback in super().configure_callbacks()
        ]

    def on_train_start(self) -> None:
        """Start the workers, with the weights that the run begins with or goes on from."""
        standardise = {
            name: values.numpy() for name, values in self.model.standardise.state_dict().items()
        }
        averages = None
        if self.averaged_model is not None:
            averages = flatten(dense_weights(self.averaged_model))
        dense = DenseState(
            flatten(dense_weights(self.model)), averages, optimizer_state_of(self._optimizer())
        )
        schedule = self.schedule
        self.session.begin(schedule.steps_per_epoch, schedule.num_steps, standardise, dense)
        self.segment_stop = self.global_step

    def training_step(self, batch: PlannedBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Wait until one more step has been applied; at the end of a segment take over the weights.

        Args:
            batch: The step.
            batch_idx: The number of the step in its epoch, from 0.
        """
        if self.global_step == self.segment_stop:
            self._begin_segment()
        self.train_metrics.add(self.session.next_record().metrics)
        self._count_step()
        if self.is_consistent:
            self._take_over(self.session.end_segment())

    def on_validation_start(self) -> None:
        """Let the workers score the validation rows."""
        (num_batches,) = self.trainer.num_val_batches
        weights = flatten(dense_weights(self.exported_model))
        self.scores = self.session.scores(weights, int(num_batches))

    def validation_step(self, batch: PlannedBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Add a batch of validation rows to the validation metrics."""
        loss_sum, *arrays = next(self.scores)
        logits_B, labels_B, weights_B = (
            None if array is None else torch.tensor(array) for array in arrays
        )
        assert logits_B is not None
        assert labels_B is not None
        self.valid_metrics.update(torch.tensor(loss_sum), logits_B, labels_B, weights_B)

    def write_tables(self, directory: Path) -> dict[str, int]:
        """Let the servers write their tables into a new directory."""
        return self.session.write_tables(directory)

    def restore_tables(self, weights: dict[str, Tensor], saved: Saved | None) -> None:
        """Restore the tables on the servers, from what any number of ranks or servers has saved."""
        if saved is None:
            restore(self.model, self.embedding_optimizers, self.epoch_mean, weights, None)
            return
        self.session.read_tables(saved.directory)

    @property
    def is_consistent(self) -> bool:
        """Whether the driver and the servers have the weights of the same step."""
        return self.global_step == self.segment_stop

    def _begin_segment(self) -> None:
        now_s = time.monotonic()
        if self.session.traffic.num_steps:  # a segment has been timed
            point_s = (now_s - self.segment_begun_s) / self.segment_points
            self.segment_points = max(1, min(MAX_POINTS, int(SEGMENT_S / point_s)))
        self.segment_begun_s = now_s
        stop, points = self.global_step, 0
        while points < self.segment_points:
            stop += 1
            points += self.schedule.records_at(stop)
            if self.schedule.validates_at(stop):
                break
        self.segment_points = points
        self.session.begin_segment(self.global_step, stop)
        self.segment_stop = stop

    def _count_step(self) -> None:
        """Count a step for Lightning: an optimizer without gradients changes nothing."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        optimizer.step()

    def _take_over(self, dense: DenseState) -> None:
        unflatten(dense.weights, dense_weights(self.model))
        if self.averaged_model is not None and dense.averages is not None:
            unflatten(dense.averages, dense_weights(self.averaged_model))
        load_optimizer_state(self._optimizer(), dense.optimizer)

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer


class ServedWeightAveraging(WeightAveraging):
    """Updates the mean over epochs; the dense server updates the averages within an epoch."""

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the mean at an epoch's end."""
        self.update_epoch_mean(trainer, batch_idx)


class ServedData(FeatureData):
    """The training and validation rows as plans: the driver reads none of them."""

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of the steps."""
        return TrainLoader(PlannedSteps(self), self._current_epoch)

    def val_dataloader(self) -> "PlannedValidation":  # type: ignore[override]
        """Return the loader of the validation batches."""
        return PlannedValidation(self.valid_batches())

    def setup(self, stage: str) -> None:
        """Open nothing."""


class PlannedSteps:
    """The steps of a run, without their rows."""

    def __init__(self, data: FeatureData) -> None:
        self.batches = data.train_batches()
        self.steps_per_epoch = self.batches.steps_per_epoch

    def batch(self, step: int) -> PlannedBatch:
        """Return a step, counted from 0 over all epochs."""
        return _planned(self.batches, step)


class PlannedValidation:
    """The validation batches, without their rows."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        """Return the number of batches."""
        return self.batches.steps_per_epoch

    def __iter__(self) -> Iterator[PlannedBatch]:
        """Yield the batches in file order."""
        for step in range(len(self)):
            yield _planned(self.batches, step)


def _planned(batches: Batches, step: int) -> PlannedBatch:
    return PlannedBatch(batches.rows_before(step + 1) - batches.rows_before(step))
