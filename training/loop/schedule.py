"""The course of a run: what happens at which step, and the learning rates."""

from typing import NamedTuple

from common.config.loading import ConfigError
from common.config.params import Train

POINTS = 100  # of the training curve, about, per run


class Plan(NamedTuple):
    """Steps of a run. Within each epoch a validation every validate_every steps and one at its end; a point of the training curve with
    each of them, and every record_every steps between."""

    num_steps: int
    steps_per_epoch: int
    record_every: int
    validate_every: int

    @classmethod
    def make(cls, epochs: int, steps_per_epoch: int, validations: int) -> "Plan":
        """About so many validations per run, at least one an epoch."""
        validate_every = -(-steps_per_epoch // max(1, validations // epochs))
        num_validations = epochs * -(-steps_per_epoch // validate_every)
        record_every = -(-validate_every // max(1, POINTS // num_validations))
        return cls(epochs * steps_per_epoch, steps_per_epoch, record_every, validate_every)

    def records_at(self, step: int) -> bool:
        return step % self.steps_per_epoch % self.validate_every % self.record_every == 0

    def validates_at(self, step: int) -> bool:
        return step % self.steps_per_epoch % self.validate_every == 0

    def validations_after(self, step: int) -> int:
        """How many are to come."""
        epochs_left, steps_done = (
            -(-(self.num_steps - step) // self.steps_per_epoch),
            step % self.steps_per_epoch,
        )
        return (
            epochs_left * -(-self.steps_per_epoch // self.validate_every)
            - steps_done // self.validate_every
        )

    def next_validation(self, step: int) -> int:
        """The first one after this many steps."""
        epoch, done = divmod(step, self.steps_per_epoch)
        return epoch * self.steps_per_epoch + min(
            done - done % self.validate_every + self.validate_every, self.steps_per_epoch
        )


def check_schedule(params: Train, plan: Plan) -> None:
    """Raises ConfigError for what this many steps have no room for."""
    if params.warmup_steps + params.decay_steps > plan.num_steps:
        raise ConfigError(
            f"params.yaml: train.warmup_steps {params.warmup_steps:,} and decay_steps {params.decay_steps:,} are more than the"
            f" {plan.num_steps:,} steps of the run; lower them, train.batch_size or train.accumulate_grad_batches, or give more epochs"
        )
    restarts = params.reset_embeddings_each_epoch and params.epochs > 1
    count, what = (
        (params.epochs, "ends of epochs, with reset_embeddings_each_epoch,")
        if restarts
        else (plan.validations_after(0), "validations")
    )
    if params.early_stopping_patience is not None and params.early_stopping_patience >= count:
        raise ConfigError(
            f"params.yaml: train.early_stopping_patience is {params.early_stopping_patience}, but only {count} {what} count, so it would never stop; lower it,"
            " or set it to null"
        )


def lr_factor(step: int, num_steps: int, params: Train) -> float:
    """What a step (from 0) multiplies both learning rates by: linear warm-up from 1/N, 1, then ((D - (s - start)) / D)^2.

    facebookresearch/dlrm's policy, the decay ending with the run.
    """
    start = num_steps - params.decay_steps
    if step < params.warmup_steps:
        return (step + 1) / params.warmup_steps
    if step < start:
        return 1.0
    return ((params.decay_steps - (step - start)) / params.decay_steps) ** 2
