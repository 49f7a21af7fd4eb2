"""Callbacks: the training curve, validation at an epoch's end, early stopping, progress."""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar

from common.logs import get_logger
from common.progress import Progress
from training.loop.batches import Batch, Batches
from training.loop.diverged import Diverged
from training.loop.schedule import Schedule
from training.loop.training_curves import Point, RunningMetrics
from training.models.dlrm import DLRM

log = get_logger("train")


class TrainingCurves(pl.Callback):
    """Measures the training curve, logs its points and checks that they are finite.

    The metrics of a validation are also logged with `self.log` as valid/loss, valid/accuracy and
    valid/auc, for callbacks that monitor them.

    Args:
        model: The model that learns; its dense weights are checked.
        schedule: The steps that a point follows.
        train_metrics: The metrics that the training steps update.
        valid_metrics: The metrics that the validation steps update.
        updates_per_step: The number of times that a training step updates its metrics.

    Attributes:
        history: The points so far.
    """

    def __init__(
        self,
        model: DLRM,
        schedule: Schedule,
        train_metrics: RunningMetrics,
        valid_metrics: RunningMetrics,
        updates_per_step: int,
    ) -> None:
        self.model, self.schedule = model, schedule
        self.train_metrics, self.valid_metrics = train_metrics, valid_metrics
        self.updates_per_step = updates_per_step
        self.history: list[Point] = []

    @property
    def validations(self) -> list[Point]:
        """The points of the validations."""
        return [point for point in self.history if point.split == "valid"]

    @property
    def best(self) -> Point:
        """The validation with the lowest loss, the first of equals."""
        return min(self.validations, key=lambda point: point.loss)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure a point where the schedule has one. Collective."""
        step = trainer.global_step
        if not self.schedule.records_at(step):
            return
        point = Point(step, "train", *self.train_metrics.compute())
        if not math.isfinite(point.loss):
            raise Diverged(self._first_step_not_finite(), f"train loss {point.loss}")
        self.train_metrics.reset()
        self._record(trainer, point)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the validation. Collective."""
        metrics = self.valid_metrics.compute()
        self.valid_metrics.reset()
        if trainer.sanity_checking:
            return
        point = Point(trainer.global_step, "valid", *metrics)
        if not math.isfinite(point.loss):
            raise Diverged(point.step, f"valid loss {point.loss}")
        self._record(trainer, point)
        pl_module.log_dict(_named_metrics(point), logger=False)
        if trainer.is_global_zero:
            auc = "none" if point.auc is None else f"{point.auc:.4f}"
            log.info(
                f"validation at step {point.step:,}: loss {point.loss:.4f},"
                f" accuracy {point.accuracy:.4f}, AUC {auc}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the points, for a checkpoint."""
        return {"history": [list(point) for point in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the points of a checkpoint."""
        self.history = [Point(*values) for values in state_dict["history"]]

    def _record(self, trainer: pl.Trainer, point: Point) -> None:
        # A ReLU may hide a NaN from the loss.
        if not all(w.isfinite().all() for w in self.model.parameters() if w.requires_grad):
            raise Diverged(point.step, "a weight that is NaN or infinite")
        self.history.append(point)
        for logger in trainer.loggers:
            logger.log_metrics(_named_metrics(point), step=point.step)

    def _first_step_not_finite(self) -> int:
        """Return the step, from 1, of the first loss since the last point that is not finite."""
        last_point = max(
            (point.step for point in self.history if point.split == "train"), default=0
        )
        return last_point + self.train_metrics.first_not_finite() // self.updates_per_step + 1


def _named_metrics(point: Point) -> dict[str, float]:
    metrics = {"loss": point.loss, "accuracy": point.accuracy}
    if point.auc is not None:
        metrics["auc"] = point.auc
    return {f"{point.split}/{name}": value for name, value in metrics.items()}


class ValidateAtEpochEnd(pl.Callback):
    """Adds a validation after the last step of each epoch, whatever `val_check_interval` is.

    Lightning validates after every `trainer.val_check_batch` batches, and so not at an epoch's end
    unless that number divides the epoch.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the interval that Lightning has derived from `val_check_interval`."""
        self.interval = trainer.val_check_batch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the interval be the whole epoch while the last batch is trained on."""
        if batch_idx + 1 == trainer.num_training_batches:
            trainer.val_check_batch = trainer.num_training_batches
        else:
            trainer.val_check_batch = self.interval


class EarlyStopping(pl.Callback):
    """Ends the run when `patience` validations in a row have not improved the validation loss.

    Unlike Lightning's callback it can leave validations within an epoch out of the count, and it
    stops a run again that was killed after it had stopped.

    Args:
        curves: The training curve, which has the validations.
        schedule: The steps of the run.
        patience: The number of validations.
        at_epoch_ends: Count only validations at the end of an epoch: after an embedding reset the
            loss begins high again.
    """

    def __init__(
        self, curves: TrainingCurves, schedule: Schedule, patience: int, *, at_epoch_ends: bool
    ) -> None:
        self.curves, self.schedule = curves, schedule
        self.patience, self.at_epoch_ends = patience, at_epoch_ends

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a resumed run that had stopped before."""
        self._check(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the run if the validation was the last that it could wait for."""
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        validations = self.curves.validations
        step = trainer.global_step
        if not validations or step == self.schedule.num_steps:
            return
        best = self.curves.best
        waited = [point for point in validations if point.step > best.step and self._counts(point)]
        if len(waited) >= self.patience:
            trainer.should_stop = True
            if trainer.is_global_zero:
                log.info(
                    f"stops early at step {step:,} of {self.schedule.num_steps:,}:"
                    f" no validation since step {best.step:,} was better"
                )

    def _counts(self, point: Point) -> bool:
        return not self.at_epoch_ends or self.schedule.is_end_of_epoch(point.step)


class RowProgress(ProgressBar):
    """Shows the progress: a Rich bar in a terminal, a log line a second elsewhere.

    Args:
        root: The directory with runs/, where the timing is written; None writes no timing.
        batches: The training rows.
        num_steps: The number of steps of the run.
        member: The number, from 0, of the member of an ensemble that is trained.
        ensemble_size: The number of its members; the progress is that of all of them.
        stage: The name with which each line begins.
    """

    def __init__(
        self,
        root: Path | None,
        batches: Batches,
        num_steps: int,
        member: int = 0,
        ensemble_size: int = 1,
        stage: str = "train",
    ) -> None:
        super().__init__()
        self.root, self.batches, self.num_steps = root, batches, num_steps
        self.member, self.ensemble_size = member, ensemble_size
        self.stage = stage
        self.enabled = True
        self.progress: Progress | None = None
        self.running = ExitStack()

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all ranks but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self.enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; rows of steps before a resume are no part of the rate."""
        if not self.enabled:
            return
        rows_of_a_member = self.batches.rows_before(self.num_steps)
        self.progress = Progress(
            self.stage,
            self.ensemble_size * rows_of_a_member,
            self.root,
            self.member * rows_of_a_member + self.batches.rows_before(trainer.global_step),
        )
        self.running.enter_context(self.progress)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count the rows of the global batch."""
        if self.progress:
            self.progress.update(batch.num_rows)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last line and write the timing."""
        is_last_member = self.member == self.ensemble_size - 1
        if self.progress and (trainer.global_step < self.num_steps or not is_last_member):
            self.progress.stopped = True
        self.running.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Remove the bar without a last line."""
        self.running.__exit__(type(exception), exception, exception.__traceback__)
