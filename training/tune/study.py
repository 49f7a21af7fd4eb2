"""A study: its folder, its key, and the order in which trials are chosen, run and recorded.

Trial k is chosen from the outcomes of the trials 0 .. k - `window`, and so are its limits. So the
study does not depend on the number of workers or on the order in which they finish.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from common.artifact import Artifact, DamageError
from common.bundle_layout import manifest_in
from common.checked_json import write_checked_json
from common.code_hash import code_hashes
from common.config.loading import ConfigError, check
from common.config.params import Params
from common.config.tune import Tune
from common.files import DataError, remove, sha256_file
from common.layout import FEATURES
from common.logs import get_logger
from common.progress import Progress
from training.inference.bundle import DECIDING
from training.kernels.compiler import kernels_name
from training.loop.checkpoint import ROUNDING
from training.tune.journal import Confirmation, Journal, Trial
from training.tune.outcome import Outcome
from training.tune.pool import Pool
from training.tune.samplers import ask, num_trials
from training.tune.space import end_values, trial_params, with_keys
from training.tune.stopping import Finished, limits_of
from training.tune.study_files import CONFIRMATIONS, LAST_STUDY, SETTINGS, STUDIES, TRIALS
from training.tune.trial import Task
from training.tune.trial_features import TrialFeatures

log = get_logger("tune")

NOT_DECIDING = {"trials", "parallel", "confirm", "trade"}  # of tune.yaml: they change no trial
PACKAGES = ("torch", "pytorch-lightning", "numpy", "optuna")
KEY_DIGITS = 16


class Chosen(NamedTuple):
    """What was chosen for a trial that is running: its values, and the sampler's notes."""

    values: dict[str, Any]
    notes: dict[str, Any]


class Study:
    """A search that is running, or that was run.

    Args:
        params: The parameters of params.yaml.
        tune: The search.
        root: The project folder.

    Attributes:
        key: The hash of all that decides the outcome of a trial.
        folder: The folder of its files.
        base: The values of params.yaml.
    """

    def __init__(self, params: Params, tune: Tune, root: Path) -> None:
        self.tune, self.root = tune, root
        single = {
            "devices": 1,
            "nodes": 1,
            "parallel": "hybrid",
            "ensemble_size": 1,
            "threads": tune.threads,
        }
        self.params = params.model_copy(update={"train": params.train.model_copy(update=single)})
        self.base = self.params.model_dump(mode="json", by_alias=True)
        self.key = study_key(self.params, tune, root)
        self.folder = root / STUDIES / self.key
        self.features = TrialFeatures(self.params, root, self.folder / "features")
        self.trials = Journal(self.folder / TRIALS, Trial)
        self.confirmations = Journal(self.folder / CONFIRMATIONS, Confirmation)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Write what the study is about, and keep other processes from running it meanwhile.

        Raises:
            ConfigError: Another process runs it.
            DataError: A file of the features is damaged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ConfigError(
                f"another clickmill tune runs the study in {self.folder}; wait for it, or stop it"
            ) from None
        with lock:
            _remove_features_of_others(self.folder)
            keys = [*self.tune.space, *self.tune.set]
            self.features.link(with_shards=any(key.startswith("features.") for key in keys))
            settings = {"tune": self.tune.model_dump(mode="json"), "params": self.base}
            write_checked_json(self.folder / SETTINGS, settings)
            for journal in (self.trials, self.confirmations):
                journal.remove_half_line()
            write_checked_json(self.root / STUDIES / LAST_STUDY, {"study": self.key})
            yield

    def search(self, pool: Pool) -> list[Trial]:
        """Run the trials that the journal does not have, and return all of them.

        Raises:
            DataError: The journal or a feature file is damaged.
        """
        total = num_trials(self.tune)
        recorded = {trial.number: trial for trial in self.trials.read()}
        found = {number: trial for number, trial in recorded.items() if number < total}
        if found:
            log.info(f"{len(found)} of {total} trials of study {self.key} are there already")
        waiting = [number for number in range(total) if number not in found]
        running: dict[int, Chosen] = {}
        with Progress("tune", total, self.root, len(found), unit="trials") as progress:
            while waiting or running:
                failed: tuple[int, Outcome] | None = None
                while waiting and pool.has_room() and self._may_start(waiting[0], found):
                    number = waiting.pop(0)
                    known = [found[k] for k in range(number - self.tune.window + 1)]
                    running[number] = Chosen(*ask(self.tune, number, known))
                    if outcome := self._submit(number, running[number].values, known, pool):
                        failed = number, outcome
                        break
                number, outcome = failed or pool.next_finished()
                chosen = running.pop(number)
                found[number] = Trial(number=number, outcome=outcome, **chosen._asdict())
                self.trials.append(found[number])
                log.info(f"trial {number}: {_shown(outcome, self.tune.objectives)}")
                progress.update(1)
        recorded |= found  # those of an earlier run with more trials stay for the next one
        self.trials.rewrite(recorded[number] for number in sorted(recorded))
        return [found[number] for number in sorted(found)]

    def _may_start(self, number: int, found: Mapping[int, Trial]) -> bool:
        return all(k in found for k in range(number - self.tune.window + 1))

    def _submit(
        self, number: int, values: Mapping[str, Any], known: Sequence[Trial], pool: Pool
    ) -> Outcome | None:
        """Start a trial; return its outcome if its values do not go together."""
        try:
            task = self.task(f"trial {number}", values)
        except DamageError:
            raise
        except (ConfigError, DataError) as error:
            return Outcome(result=None, error=str(error).splitlines()[0])
        finished = [
            Finished(trial.number, trial.outcome.result.curve)
            for trial in known
            if trial.outcome.result
        ]
        limits = limits_of(self.tune.stop, number, finished, self.params.train.validations)
        pool.submit(number, replace(task, limits=limits))
        return None

    def task(self, title: str, values: Mapping[str, Any], seed: int | None = None) -> Task:
        """Return the task to train with some values of the space, to the end of the run.

        Args:
            title: What the task is, for messages.
            values: The values.
            seed: The value of train.seed, if it is another than that of params.yaml.

        Raises:
            ConfigError: The values do not go together.
            DataError: The features cannot be made with these values, or a shard is damaged.
        """
        params = trial_params(self.base, self.tune, values)
        return self._task(title, params, seed)

    def present_task(self, title: str, seed: int) -> Task:
        """Return the task to train with the present params.yaml."""
        return self._task(title, self.params, seed)

    def _task(self, title: str, params: Params, seed: int | None) -> Task:
        update: dict[str, Any] = {} if seed is None else {"seed": seed}
        root = self.root.resolve()  # a trial runs in another folder
        if start := params.train.warm_start_dir(root):
            update["warm_start_from"] = str(start)
        if params.train.distill:
            teachers = [str(teacher) for teacher in params.train.teacher_dirs(root)]
            update["distill"] = params.train.distill.model_copy(update={"teachers": teachers})
        train = params.train.model_copy(update=update)
        params = params.model_copy(update={"train": train})
        return Task(title, params, self.features.root_for(params))


def _remove_features_of_others(folder: Path) -> None:
    """Remove the features of other studies that nobody runs; they can be made again."""
    for other in folder.parent.glob("*/features"):
        if other.parent == folder:
            continue
        with suppress(Timeout), FileLock(other.parent / ".lock", blocking=False):
            remove(other)


def study_key(params: Params, tune: Tune, root: Path) -> str:
    """Return the hash of all that decides the outcomes of a study's trials.

    Raises:
        DataError: There are no features, their manifest is damaged, or a bundle is missing.
    """
    deciding = DECIDING - ROUNDING | {"threads"}
    decides = {
        "tune": tune.model_dump(mode="json", exclude=NOT_DECIDING),
        "params": params.model_dump(
            mode="json", include={"features": True, "model": True, "train": deciding}
        ),
        "features": sha256_file(Artifact.open(root / FEATURES).manifest_path),
        "bundles": _bundles(params, tune, root),
        "code": code_hashes("training.tune.study"),
        "kernels": kernels_name(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]


def _bundles(params: Params, tune: Tune, root: Path) -> list[str]:
    """Return the SHA-256 of the manifests of all bundles that a trial may start or learn from."""
    base = params.model_dump(mode="json", by_alias=True)
    choices = [{}, tune.set]
    for key, values in tune.space.items():
        if key.startswith(("train.warm_start_from", "train.distill")):
            choices += [{**tune.set, key: value} for value in end_values(values)]
    trains = [check(Params, with_keys(base, one), Path(SETTINGS)).train for one in choices]
    folders = {
        folder
        for train in trains
        for folder in (train.warm_start_dir(root), *train.teacher_dirs(root))
        if folder is not None
    }
    return [sha256_file(manifest_in(folder)) for folder in sorted(folders)]


def _shown(outcome: Outcome, objectives: Sequence[str]) -> str:
    if outcome.result is None:
        return f"failed: {outcome.error}"
    costs = [f"{getattr(outcome.result, name):,} {name}" for name in objectives[1:]]
    end = ["stopped"] if outcome.result.is_stopped else []
    return ", ".join([f"logloss {outcome.result.logloss:.5f}", *costs, *end])
