"""The whole search: trials, confirmation, measurement of the best models, report."""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from common.config.loading import ConfigError
from common.logs import get_logger
from training.tune.choice import best_trials, candidates_of, finished
from training.tune.confirm import confirm
from training.tune.latency import Latency, measure
from training.tune.pool import Pool
from training.tune.report import write_report
from training.tune.study import Study
from training.tune.summary import Summary
from training.tune.trial import Task

log = get_logger("tune")

MAX_MEASURED = 8  # models of the front whose latency is measured


def run_study(study: Study, pool: AbstractContextManager[Pool]) -> tuple[Summary, Path]:
    """Run or resume a study, and write its report.

    Args:
        study: The study.
        pool: What runs its trials, opened here.

    Returns:
        The summary and the path of the report.

    Raises:
        ConfigError: No trial was trained to its end, or another process runs the study.
        DataError: The features or the study's journal are damaged.
    """
    with study.opened():
        log.info(f"study {study.key} in {study.folder}")
        with pool as workers:
            trials = study.search(workers)
            if not finished(trials):
                reason = trials[0].outcome.error or "it was stopped"
                raise ConfigError(
                    f"no trial was trained to its end; trial 0: {reason}; change tune.yaml"
                )
            confirmations = confirm(study, trials, workers)
        by_number = {trial.number: trial for trial in trials}
        candidates = candidates_of(confirmations, by_number, study.tune) if confirmations else []
        summary = Summary(study.key, study.tune, trials, candidates, [])
        summary = replace(summary, latencies=_measure(study, summary))
        return summary, write_report(study.folder, summary, study.root)


def _measure(study: Study, summary: Summary) -> list[Latency]:
    """Measure the models of the front and of the confirmed trials, alone, after all others."""
    if study.tune.confirm is None:
        return []
    best = [one.number for one in best_trials(summary.trials, study.tune)]
    front = [one.number for one in summary.front][:MAX_MEASURED]
    values = {trial.number: trial.values for trial in summary.trials}
    numbers = sorted({*best, *front})
    seed = study.params.train.seed
    tasks: list[tuple[int | None, Task]] = [(None, study.present_task("params.yaml", seed))]
    tasks += [(number, study.task(f"trial {number}", values[number])) for number in numbers]
    log.info(f"measures the latency of {len(tasks)} models, one after another")
    return measure(study.folder, tasks)
