"""The choice between trials: the Pareto front, the trade of cost for quality, the advice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any, Literal

from common.config.tune import Cost, Tune
from training.tune.journal import Confirmation, Trial
from training.tune.outcome import Result

Verdict = Literal["better", "as good and cheaper", "not better", "failed"]


@dataclass(frozen=True)
class Candidate:
    """A trial, or the present params.yaml, after its trainings with several seeds.

    Attributes:
        trial: The number of the trial; None for the present params.yaml.
        values: Its value of each key of the space; empty for the present params.yaml.
        searched: The logloss that the search has seen, a lucky figure; None for the present one.
        loglosses: The logloss of each seed; empty if a training failed.
        aucs: The AUC of each seed.
        costs: The costs of its model; empty if a training failed.
        verdict: How it compares with the present params.yaml; None for the latter.
        error: The reason why a training failed, else None.
    """

    trial: int | None
    values: Mapping[str, Any]
    searched: float | None
    loglosses: Sequence[float]
    aucs: Sequence[float | None]
    costs: Mapping[str, int]
    verdict: Verdict | None = None
    error: str | None = None

    @property
    def logloss(self) -> float:
        """The mean logloss of the seeds."""
        return mean(self.loglosses)

    @property
    def spread(self) -> float:
        """The standard deviation of the logloss between seeds."""
        return stdev(self.loglosses)

    @property
    def auc(self) -> float | None:
        """The mean AUC of the seeds; None if one has none."""
        aucs = [auc for auc in self.aucs if auc is not None]
        return mean(aucs) if len(aucs) == len(self.aucs) else None


def finished(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that were trained to their end."""
    return [one for one in trials if one.outcome.result and not one.outcome.result.is_stopped]


def pareto_front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Return the finished trials that no other one beats, in order of their numbers.

    A trial beats another if it is as good in all objectives and better in one.
    """
    points = {trial.number: _objectives(trial, objectives) for trial in finished(trials)}
    return [
        trial
        for trial in finished(trials)
        if not any(_beats(other, points[trial.number]) for other in points.values())
    ]


def best_trials(trials: Sequence[Trial], tune: Tune) -> list[Trial]:
    """Return the finished trials that are to be confirmed, the best one first."""
    if tune.confirm is None:
        return []

    def rank(trial: Trial) -> tuple[float, int]:
        result = result_of(trial)
        return traded(result.logloss, costs_of(result), tune.trade), trial.number

    return sorted(finished(trials), key=rank)[: tune.confirm.best]


def traded(logloss: float, costs: Mapping[str, int], trade: Mapping[Cost, float] | None) -> float:
    """Return a logloss to which costs are added, as `trade` values them.

    Twice a cost adds what `trade` says that half of it is worth. Only differences of the result
    mean something.
    """
    return logloss + sum(
        worth * math.log2(max(1, costs[name])) for name, worth in (trade or {}).items()
    )


def candidates_of(
    confirmations: Sequence[Confirmation], trials: Mapping[int, Trial], tune: Tune
) -> list[Candidate]:
    """Return the present params.yaml and the confirmed trials, the best one first.

    Args:
        confirmations: All trainings for the confirmation.
        trials: The trials by number.
        tune: The search.
    """
    numbers = list(dict.fromkeys(one.trial for one in confirmations if one.trial is not None))
    present = _candidate(None, confirmations, trials)
    others = [_candidate(number, confirmations, trials) for number in numbers]
    judged = [_judged(other, present, tune) for other in others]
    judged.sort(key=lambda one: (bool(one.error), _figure(one, tune), one.trial or 0))
    return [present, *judged]


def recommended(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the best candidate that is better than params.yaml, or as good and cheaper."""
    good = [one for one in candidates if one.verdict in ("better", "as good and cheaper")]
    return good[0] if good else None


def result_of(trial: Trial) -> Result:
    """Return the result of a trial that has one."""
    assert trial.outcome.result is not None
    return trial.outcome.result


def costs_of(result: Result) -> dict[str, int]:
    """Return the costs of a model by their names."""
    return {
        "macs": result.macs,
        "bytes": result.bytes,
        "parameters": result.parameters,
        "bytes_per_row": result.bytes_per_row,
    }


def _candidate(
    number: int | None, confirmations: Sequence[Confirmation], trials: Mapping[int, Trial]
) -> Candidate:
    outcomes = [one.outcome for one in confirmations if one.trial == number]
    values = {} if number is None else trials[number].values
    searched = None if number is None else result_of(trials[number]).logloss
    results = [outcome.result for outcome in outcomes if outcome.result]
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        return Candidate(number, values, searched, [], [], {}, error=errors[0])
    return Candidate(
        number,
        values,
        searched,
        [result.logloss for result in results],
        [result.auc for result in results],
        costs_of(results[0]),
    )


def _judged(one: Candidate, present: Candidate, tune: Tune) -> Candidate:
    """Compare a candidate with the present params.yaml.

    A difference counts if it is larger than the spread between seeds, of both together.
    """
    verdict: Verdict = "not better"
    if one.error:
        verdict = "failed"
    elif present.error:
        verdict = "better"
    else:
        spread = math.sqrt((one.spread**2 + present.spread**2) / 2)
        gain = _figure(present, tune) - _figure(one, tune)
        cost = "macs" if len(tune.objectives) == 1 else tune.objectives[1]
        if gain > spread:
            verdict = "better"
        elif gain >= -spread and one.costs[cost] < present.costs[cost]:
            verdict = "as good and cheaper"
    return replace(one, verdict=verdict)


def _figure(one: Candidate, tune: Tune) -> float:
    return math.inf if one.error else traded(one.logloss, one.costs, tune.trade)


def _objectives(trial: Trial, objectives: Sequence[str]) -> tuple[float, ...]:
    result = result_of(trial)
    return tuple(float(getattr(result, name)) for name in objectives)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
