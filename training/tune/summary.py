"""The summary of a study, for the report, the terminal and Prefect's artifacts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config.tune import Choice, Range, Tune
from training.tune.choice import Candidate, finished, pareto_front, recommended, result_of
from training.tune.journal import Trial
from training.tune.latency import Latency

NUM_THIRDS = 3


@dataclass(frozen=True)
class Summary:
    """What a study has found.

    Attributes:
        key: The key of the study.
        tune: The search.
        trials: All trials, in order of their numbers.
        candidates: The present params.yaml and the confirmed trials; empty without confirmation.
        latencies: The measured costs of the models of the front.
    """

    key: str
    tune: Tune
    trials: Sequence[Trial]
    candidates: Sequence[Candidate]
    latencies: Sequence[Latency]

    @property
    def front(self) -> list[Trial]:
        """The finished trials that no other one beats, the cheapest one first."""
        front = pareto_front(self.trials, self.tune.objectives)
        cost = self.cost
        return sorted(front, key=lambda one: (getattr(one.outcome.result, cost), one.number))

    @property
    def cost(self) -> str:
        """The cost that the logloss is drawn against: the second objective, else multiply-adds."""
        return self.tune.objectives[1] if len(self.tune.objectives) > 1 else "macs"

    @property
    def num_stopped(self) -> int:
        """The number of trials that were stopped early."""
        return sum(
            bool(one.outcome.result and one.outcome.result.is_stopped) for one in self.trials
        )

    @property
    def failed(self) -> list[Trial]:
        """The trials that failed."""
        return [one for one in self.trials if one.outcome.error]

    @property
    def num_rows(self) -> int:
        """The number of rows that all trials were trained on."""
        return sum(one.outcome.result.rows for one in self.trials if one.outcome.result)

    @property
    def recommended(self) -> Candidate | None:
        """The candidate that is recommended, if there is one."""
        return recommended(self.candidates)

    @property
    def importance(self) -> dict[str, float]:
        """The importance of each key of the space, the largest one first.

        It is the share of the variance of the trials' ranks by logloss that the key's values
        explain (eta squared, of a one-way analysis of variance); the values of a range are cut into
        three groups of equal size. Trials that were stopped count with what they had reached.
        """
        trials = [one for one in self.trials if one.outcome.result]
        losses = [result_of(one).logloss for one in trials]
        order = sorted(range(len(losses)), key=losses.__getitem__)
        ranks = {number: float(rank) for rank, number in enumerate(order)}
        shares = {
            key: _explained(_groups(values, [one.values[key] for one in trials]), ranks)
            for key, values in self.tune.space.items()
        }
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def changes(self, trial: Trial | Candidate) -> dict[str, Any]:
        """Return the values of a trial that stand in params.yaml once it is adopted."""
        return {**self.tune.set, **trial.values}


def best_finished(trials: Sequence[Trial]) -> Trial | None:
    """Return the finished trial of the lowest logloss, the first of equals."""
    return min(finished(trials), key=lambda one: result_of(one).logloss, default=None)


def _groups(values: Choice | Range, of_trials: Sequence[Any]) -> list[str]:
    """Return the group of each trial by its value of a key."""
    if isinstance(values, Choice):
        return [json.dumps(value, sort_keys=True) for value in of_trials]
    order = sorted(range(len(of_trials)), key=of_trials.__getitem__)
    thirds = {number: NUM_THIRDS * rank // len(order) for rank, number in enumerate(order)}
    return [str(thirds[number]) for number in range(len(of_trials))]


def _explained(groups: Sequence[str], ranks: Mapping[int, float]) -> float:
    if len(groups) < 2:
        return 0.0
    mean = sum(ranks.values()) / len(ranks)
    total = sum((rank - mean) ** 2 for rank in ranks.values())
    members: dict[str, list[float]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(ranks[number])
    between = sum(len(inner) * (sum(inner) / len(inner) - mean) ** 2 for inner in members.values())
    return between / total
