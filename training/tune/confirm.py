"""The confirmation: the best trials and the present params.yaml, each trained with several seeds.

The best of many trials by one seed is partly luck. The seeds are others than that of the search.
"""

from collections.abc import Sequence

from common.logs import get_logger
from common.progress import Progress
from training.tune.choice import best_trials
from training.tune.journal import Confirmation, Trial
from training.tune.outcome import Outcome
from training.tune.pool import Pool
from training.tune.study import Study
from training.tune.trial import Task

log = get_logger("tune")


def confirm(study: Study, trials: Sequence[Trial], pool: Pool) -> list[Confirmation]:
    """Run the trainings for the confirmation that the journal does not have, and return all.

    Raises:
        DataError: The journal or a feature file is damaged.
    """
    if study.tune.confirm is None or not (best := best_trials(trials, study.tune)):
        return []
    wanted = _wanted(study, best)
    found = {(one.trial, one.seed): one for one in study.confirmations.read()}
    waiting = [key for key in wanted if key not in found]
    values = {trial.number: trial.values for trial in best}
    running: dict[int, tuple[int | None, int]] = {}
    num_done = len(wanted) - len(waiting)
    with Progress("confirm", len(wanted), study.root, num_done, unit="trainings") as progress:
        while waiting or running:
            while waiting and pool.has_room():
                trial, seed = waiting.pop(0)
                key = next(k for k in range(len(wanted)) if k not in running)
                pool.submit(key, _task(study, trial, seed, values))
                running[key] = (trial, seed)
            key, outcome = pool.next_finished()
            trial, seed = running.pop(key)
            entry = Confirmation(trial=trial, seed=seed, outcome=outcome)
            study.confirmations.append(entry)
            found[trial, seed] = entry
            log.info(f"{_title(trial, seed)}: {_shown(outcome)}")
            progress.update(1)
    study.confirmations.rewrite(sorted(found.values(), key=_order))
    return [found[key] for key in wanted]


def _wanted(study: Study, best: Sequence[Trial]) -> list[tuple[int | None, int]]:
    assert study.tune.confirm is not None
    first = study.params.train.seed + 1  # the search has had train.seed itself
    seeds = range(first, first + study.tune.confirm.seeds)
    numbers = [None, *(trial.number for trial in best)]
    return [(number, seed) for seed in seeds for number in numbers]


def _task(study: Study, trial: int | None, seed: int, values: dict[int, dict[str, object]]) -> Task:
    if trial is None:
        return study.present_task(_title(trial, seed), seed)
    return study.task(_title(trial, seed), values[trial], seed)


def _title(trial: int | None, seed: int) -> str:
    return f"{'params.yaml' if trial is None else f'trial {trial}'} with seed {seed}"


def _order(one: Confirmation) -> tuple[int, int]:
    return (-1 if one.trial is None else one.trial), one.seed


def _shown(outcome: Outcome) -> str:
    if outcome.result is None:
        return f"failed: {outcome.error}"
    return f"logloss {outcome.result.logloss:.5f}"
