"""The rules that stop a trial early: median, Successive Halving and Hyperband.

A rule is evaluated when a trial starts, from the trials that it may know. Its result is a list of
limits that the trial takes along. So a trial asks nobody while it runs, and may run anywhere. A
trial that was stopped is never continued: that saves few rows and would need checkpoints.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from statistics import median
from typing import NamedTuple

from common.config.tune import Halving, Median, Stop
from training.tune.outcome import CurvePoint

TOLERANCE = 1e-9  # of shares, which are quotients of whole numbers


class Limit(NamedTuple):
    """A condition that a trial must meet to go on.

    Attributes:
        share: The share of a run. The first validation at or after it counts.
        logloss: The lowest logloss of the trial so far must not be above this.
    """

    share: float
    logloss: float


class Finished(NamedTuple):
    """What a rule needs of a finished trial: its number and the validations of its run."""

    number: int
    curve: Sequence[CurvePoint]


def limits_of(stop: Stop, number: int, known: Sequence[Finished], validations: int) -> list[Limit]:
    """Return the limits of a trial, in ascending order of their shares.

    Args:
        stop: The rule.
        number: The trial's number.
        known: The trials that it may know, without those that failed.
        validations: The number of validations of a run.
    """
    if isinstance(stop, Median):
        return _median_limits(stop, known, validations)
    if isinstance(stop, Halving):
        return _halving_limits(stop, number, known)
    return []


def _median_limits(stop: Median, known: Sequence[Finished], validations: int) -> list[Limit]:
    if len(known) < stop.startup:
        return []
    limits = []
    for share in (k / validations for k in range(1, validations)):
        losses = _losses_at(share, known)
        if share >= stop.warmup - TOLERANCE and losses:
            limits.append(Limit(share, median(losses)))
    return limits


def _halving_limits(stop: Halving, number: int, known: Sequence[Finished]) -> list[Limit]:
    limits = []
    for rung in rungs(stop, number):
        losses = sorted(_losses_at(rung, [one for one in known if rung in rungs(stop, one.number)]))
        num_kept = max(1, (len(losses) + 1) // stop.eta)
        if len(losses) >= num_kept:
            limits.append(Limit(rung, losses[num_kept - 1]))
    return limits


def rungs(stop: Halving, number: int) -> list[float]:
    """Return the shares of a run after which trial `number` can be stopped.

    With Hyperband the trials are dealt out to the brackets in turn. Each bracket begins one rung
    later than the one before, and the last one has no rung.
    """
    shares, share = [], stop.min_share
    while share < 1 - TOLERANCE:
        shares.append(share)
        share *= stop.eta
    return shares[number % (len(shares) + 1) :] if stop.name == "hyperband" else shares


def loss_at(share: float, curve: Sequence[CurvePoint]) -> float | None:
    """Return the lowest logloss up to the first validation at or after a share of the run.

    Returns:
        None if the run ended before.
    """
    before = list(takewhile(lambda point: point.share < share - TOLERANCE, curve))
    if len(before) == len(curve):
        return None
    return min(point.logloss for point in curve[: len(before) + 1])


def _losses_at(share: float, trials: Iterable[Finished]) -> list[float]:
    losses = (loss_at(share, trial.curve) for trial in trials)
    return [loss for loss in losses if loss is not None]
