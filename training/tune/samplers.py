"""The values of a trial, by Optuna's samplers.

Optuna is used for the choice of values only. Its study is in memory and is made from the known
trials for each choice, so it has no storage, no lock and no state of its own. Its journal cannot be
read after half a line, its samplers begin again with the same values after a restart, and it cannot
stop trials when there are several objectives (docs/adr). No other module imports Optuna.
"""

import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from itertools import islice, product
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from common.config.tune import Choice, Nsga2, Range, Tpe, Tune
from training.tune.journal import Trial
from training.tune.space import rounded

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def num_trials(tune: Tune) -> int:
    """Return the number of trials; a grid may have fewer than `trials` combinations."""
    if tune.sampler.name != "grid":
        return tune.trials
    return min(tune.trials, math.prod(len(values) for values in _choices(tune).values()))


def ask(tune: Tune, number: int, known: Sequence[Trial]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choose the values of a trial. The choice follows from the arguments alone.

    Args:
        tune: The search.
        number: The trial's number, from 0.
        known: The first trials in order of their numbers; those that follow are still unknown.

    Returns:
        The value of each key of the space, and the sampler's own notes about the trial, which
        `known` must have in later calls.
    """
    if tune.sampler.name == "grid":
        return _grid_values(tune, number), {}
    distributions = {key: _distribution(values) for key, values in tune.space.items()}
    study = optuna.create_study(
        directions=[StudyDirection.MINIMIZE] * len(tune.objectives), sampler=_sampler(tune, number)
    )
    for trial in known:
        study.add_trial(_frozen(tune, trial, distributions))
    for _ in range(number - len(known)):
        study.ask()  # those that are still running: NSGA-II counts its generations by the numbers
    asked = study.ask(distributions)
    values = {key: _value(tune.space[key], drawn) for key, drawn in asked.params.items()}
    return values, dict(study.get_trials(deepcopy=False)[-1].system_attrs)


def _sampler(tune: Tune, number: int) -> BaseSampler:
    """Make a sampler with a seed of its own for each trial, so that a study can be resumed."""
    seed = zlib.crc32(f"{tune.seed} {number}".encode())
    match tune.sampler:
        case Tpe(startup=startup):
            return TPESampler(n_startup_trials=startup, multivariate=True, seed=seed)
        case Nsga2(population=population):
            return NSGAIISampler(population_size=population, seed=seed)
    return RandomSampler(seed=seed)


def _distribution(values: Choice | Range) -> BaseDistribution:
    if isinstance(values, Choice):
        # By position, because a choice may be a list of widths, and Optuna keeps only scalars.
        return CategoricalDistribution(list(range(len(values.choice))))
    if values.is_whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(float(values.low), float(values.high), log=values.log)


def _value(values: Choice | Range, drawn: Any) -> Any:
    if isinstance(values, Choice):
        return values.choice[drawn]
    return drawn if values.is_whole else rounded(drawn, values)


def _frozen(tune: Tune, trial: Trial, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """Return a trial as Optuna knows it.

    A trial that was stopped counts with what it had reached: neither TPE nor NSGA-II with several
    objectives uses trials of the state PRUNED.
    """
    params = {
        key: values.choice.index(trial.values[key])
        if isinstance(values, Choice)
        else trial.values[key]
        for key, values in tune.space.items()
    }
    result = trial.outcome.result
    return create_trial(
        state=TrialState.COMPLETE if result else TrialState.FAIL,
        params=params,
        distributions=dict(distributions),
        values=[float(getattr(result, name)) for name in tune.objectives] if result else None,
        system_attrs=dict(trial.notes),
    )


def _grid_values(tune: Tune, number: int) -> dict[str, Any]:
    choices = _choices(tune)
    size = math.prod(map(len, choices.values()))
    position = int(np.random.default_rng(tune.seed).permutation(size)[number])
    return dict(zip(choices, next(islice(product(*choices.values()), position, None)), strict=True))


def _choices(tune: Tune) -> dict[str, list[Any]]:
    return {key: values.choice for key, values in tune.space.items() if isinstance(values, Choice)}
