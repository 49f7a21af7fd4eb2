"""The course of a run: what happens at which step, and the learning rates."""

from typing import NamedTuple

from features.params import Train

POINTS = 100  # of the training curve, about, per run


class Plan(NamedTuple):
    """Steps of a run. A point of the training curve every record_every steps, a validation every validate_every (a multiple of it),
    and both at the end."""

    num_steps: int
    record_every: int
    validate_every: int

    @classmethod
    def make(cls, num_steps: int, validations: int) -> "Plan":
        validate_every = max(1, num_steps // validations)
        record_every = max(1, validate_every // max(1, POINTS // validations))
        return cls(num_steps, record_every, validate_every - validate_every % record_every)

    def records_at(self, step: int) -> bool:
        return step % self.record_every == 0 or step == self.num_steps

    def validates_at(self, step: int) -> bool:
        return step % self.validate_every == 0 or step == self.num_steps

    def validations_after(self, step: int) -> int:
        """How many are to come."""
        return -(-self.num_steps // self.validate_every) - step // self.validate_every

    def next_validation(self, step: int) -> int:
        """The first one after this many steps."""
        return min(step - step % self.validate_every + self.validate_every, self.num_steps)


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
