"""The schedule of a run: steps, validations, points of the training curve, learning rates."""

from typing import NamedTuple

from common.config.loading import ConfigError
from common.config.params import Train
from common.numbers import ceil_div

POINTS = 100  # of the training curve, about, per run


class Schedule(NamedTuple):
    """The steps of a run.

    A validation follows every `validate_every` steps of an epoch and its last step. A point of the
    training curve is measured with each validation, and every `record_every` steps between two of
    them.
    """

    num_steps: int
    steps_per_epoch: int
    record_every: int
    validate_every: int

    @classmethod
    def make(cls, epochs: int, steps_per_epoch: int, validations: int) -> "Schedule":
        """Make the schedule for about `validations` validations, at least one in each epoch."""
        validate_every = ceil_div(steps_per_epoch, max(1, validations // epochs))
        num_validations = epochs * ceil_div(steps_per_epoch, validate_every)
        record_every = ceil_div(validate_every, max(1, POINTS // num_validations))
        return cls(epochs * steps_per_epoch, steps_per_epoch, record_every, validate_every)

    @property
    def num_validations(self) -> int:
        """The number of validations of the whole run."""
        epochs = self.num_steps // self.steps_per_epoch
        return epochs * ceil_div(self.steps_per_epoch, self.validate_every)

    def records_at(self, step: int) -> bool:
        """Return whether a point of the training curve follows this step, counted from 1."""
        return step % self.steps_per_epoch % self.validate_every % self.record_every == 0

    def validates_at(self, step: int) -> bool:
        """Return whether a validation follows this step, counted from 1."""
        return step % self.steps_per_epoch % self.validate_every == 0

    def is_end_of_epoch(self, step: int) -> bool:
        """Return whether this step, counted from 1, is the last of an epoch."""
        return step % self.steps_per_epoch == 0


def check_schedule(params: Train, schedule: Schedule) -> None:
    """Check that the run has enough steps and validations for its parameters.

    Raises:
        ConfigError: `warmup_steps`, `decay_steps` or `early_stopping_patience` is too large.
    """
    if params.warmup_steps + params.decay_steps > schedule.num_steps:
        raise ConfigError(
            f"params.yaml: train.warmup_steps {params.warmup_steps:,} and decay_steps"
            f" {params.decay_steps:,} are more than the {schedule.num_steps:,} steps of the run;"
            " lower them, train.batch_size or train.accumulate_grad_batches, or give more epochs"
        )
    if params.reset_embeddings_each_epoch and params.epochs > 1:
        count, what = params.epochs, "ends of epochs, with reset_embeddings_each_epoch,"
    else:
        count, what = schedule.num_validations, "validations"
    patience = params.early_stopping_patience
    if patience is not None and patience >= count:
        raise ConfigError(
            f"params.yaml: train.early_stopping_patience is {patience}, but only {count} {what}"
            " count, so it would never stop; lower it, or set it to null"
        )


def lr_factor(step: int, num_steps: int, params: Train) -> float:
    """Return the factor of both learning rates at a step.

    Linear warm-up, then 1, then quadratic decay to zero at the end of the run. This is the policy
    of facebookresearch/dlrm: (s + 1) / W in the first W = `warmup_steps` steps, and ((D - (s - S))
    / D)^2 from step S = `num_steps` - D on, with D = `decay_steps`.

    Args:
        step: The step s, from 0.
        num_steps: The number of steps of the run.
        params: The section `train` of params.yaml.
    """
    start = num_steps - params.decay_steps
    if step < params.warmup_steps:
        return (step + 1) / params.warmup_steps
    if step < start:
        return 1.0
    return ((params.decay_steps - (step - start)) / params.decay_steps) ** 2
