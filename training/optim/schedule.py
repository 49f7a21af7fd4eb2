"""Learning rates over a run."""

from features.params import Train


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
