"""One trial: a training of other parameters, without a bundle or checkpoints.

It is a function of its task, so it runs the same way in this process, in a worker process and on a
worker of a Dask cluster.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from common.config.params import Params
from common.files import DataError
from common.printable import join_lines, printable
from training.distributed.device import pick_accelerator
from training.loop.checkpoint import CHECKPOINTS, Checkpoints
from training.loop.lightning_module import TrainDLRM
from training.models.footprint import footprint_of
from training.stage import TrainingRun, make_early_stopping, prepare
from training.tune.outcome import CurvePoint, Outcome, Result
from training.tune.stopping import TOLERANCE, Limit

MAX_REASON = 300  # characters of the reason of a failure


@dataclass(frozen=True)
class Task:
    """What a worker needs to run a trial.

    Attributes:
        title: What it is, such as `trial 12`, for messages.
        params: The parameters.
        root: The folder with artifacts/features.
        limits: When it is stopped.
    """

    title: str
    params: Params
    root: Path
    limits: Sequence[Limit] = field(default_factory=list)


def run_trial(task: Task) -> Outcome:
    """Train a task's model and return its validations and its costs.

    Whatever fails because of the task's parameters is the outcome: a training that diverges, a
    model that needs too much memory, parts that do not fit together.

    Raises:
        DataError: The features are damaged, which is not the trial's fault.
    """
    try:
        return Outcome(result=_train(task), error=None)
    except DataError:
        raise
    except Exception as error:  # what torch raises has no common type
        reason = printable(join_lines(str(error)))[:MAX_REASON]
        return Outcome(result=None, error=f"{type(error).__name__}: {reason}")


def prepare_without_checkpoints(params: Params, root: Path) -> TrainingRun:
    """Make the model and the data of a run that writes no checkpoints; see `prepare`."""
    unused = Checkpoints(root / CHECKPOINTS / "none")  # nothing is written there
    return prepare(params, root, pick_accelerator(params.train), unused)


def _train(task: Task) -> Result:
    run = prepare_without_checkpoints(task.params, task.root)
    stopper = StopAtLimits(task.limits)
    trainer = run.make_trainer([*make_early_stopping(run), stopper], logger=False)
    trainer.fit(run.module, datamodule=run.data)
    return _result(run, trainer.global_step, is_stopped=stopper.is_stopped)


def _result(run: TrainingRun, num_steps: int, *, is_stopped: bool) -> Result:
    module = run.module
    best, total = module.curves.best, module.schedule.num_steps
    costs: dict[str, Any] = asdict(footprint_of(module.model))
    return Result(
        logloss=best.loss,
        auc=best.auc,
        is_stopped=is_stopped,
        rows=run.data.train_batches().rows_before(num_steps),
        curve=[
            CurvePoint(share=point.step / total, logloss=point.loss, auc=point.auc)
            for point in module.curves.validations
        ],
        **{name: costs[name] for name in ("macs", "bytes", "parameters", "bytes_per_row")},
    )


class StopAtLimits(pl.Callback):
    """Stops a trial whose lowest logloss so far is above the limit of a share of the run.

    Args:
        limits: The limits.

    Attributes:
        is_stopped: Whether a limit stopped the trial.
    """

    def __init__(self, limits: Sequence[Limit]) -> None:
        self.limits = sorted(limits)
        self.is_stopped = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the trial with the limits that its share of the run has reached."""
        assert isinstance(pl_module, TrainDLRM)
        curves, num_steps = pl_module.curves, pl_module.schedule.num_steps
        share = trainer.global_step / num_steps
        reached = [limit for limit in self.limits if limit.share <= share + TOLERANCE]
        del self.limits[: len(reached)]
        is_above = any(curves.best.loss > limit.logloss for limit in reached)
        if is_above and trainer.global_step < num_steps:
            self.is_stopped = trainer.should_stop = True
