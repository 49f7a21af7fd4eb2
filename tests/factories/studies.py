"""Small studies: a tune.yaml, features to train on, and a pool that needs no other process."""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from common.artifact import write_manifest
from common.config.loading import check
from common.config.params import Params
from common.config.tune import Tune
from common.layout import PARQUET
from tests.factories.features import training_params, write_features
from training.tune.outcome import CurvePoint, Outcome, Result
from training.tune.study import Study
from training.tune.trial import Task, run_trial

SPACE: dict[str, Any] = {
    "model.embedding_dim": {"choice": [2, 4]},
    "model.top_mlp": {"choice": [[4], [8, 4]]},
    "train.dense_optimizer.lr": {"low": 0.001, "high": 0.1, "log": True},
}


def tune_values(**changes: Any) -> dict[str, Any]:
    """Return the values of a tune.yaml with some other ones."""
    return {
        "seed": 1,
        "trials": 8,
        "window": 4,
        "parallel": 2,
        "threads": 1,
        "sampler": {"name": "tpe", "startup": 3},
        "stop": {"name": "median", "startup": 2, "warmup": 0.1},
        "objectives": ["logloss", "macs"],
        "trade": None,
        "confirm": {"best": 2, "seeds": 2},
        "set": {},
        "space": SPACE,
        **changes,
    }


def make_tune(**changes: Any) -> Tune:
    """Return a search with some other values."""
    return check(Tune, tune_values(**changes), Path("tune.yaml"))


def make_study(root: Path, params: Params | None = None, **changes: Any) -> Study:
    """Return a study of root/artifacts/features, which are written if they are not there."""
    if not (root / PARQUET).exists():
        write_features(root, {"train": [120, 80], "valid": [60], "test": [40]})
        (root / PARQUET).mkdir(parents=True)
        write_manifest(root / PARQUET, {})
    return Study(params or training_params(validations=4, epochs=2), make_tune(**changes), root)


def linked_study(root: Path, params: Params | None = None, **changes: Any) -> Study:
    """Return a study that has its features, as an opened one has."""
    study = make_study(root, params, **changes)
    study.features.link(with_shards=False)
    return study


class InlinePool(AbstractContextManager["InlinePool"]):
    """Runs tasks in this process, and lets them finish in random order.

    Args:
        num_workers: The number of tasks that are there at a time.
        run: What runs a task; a real training by default.
        seed: Seed of the order.
    """

    def __init__(
        self, num_workers: int, run: Callable[[Task], Outcome] = run_trial, seed: int = 0
    ) -> None:
        self.num_workers, self.run = num_workers, run
        self.random = random.Random(seed)
        self.running: list[tuple[int, Task]] = []

    def __exit__(self, *error: object) -> None:
        self.running.clear()

    def has_room(self) -> bool:
        return len(self.running) < self.num_workers

    def submit(self, key: int, task: Task) -> None:
        self.running.append((key, task))

    def next_finished(self) -> tuple[int, Outcome]:
        key, task = self.running.pop(self.random.randrange(len(self.running)))
        return key, self.run(task)


def outcome(losses: Sequence[float], *, macs: int = 100, is_stopped: bool = False) -> Outcome:
    """Return the outcome of a run of ten validations that ended after those of these losses."""
    curve = [CurvePoint(share=(k + 1) / 10, logloss=loss, auc=0.7) for k, loss in enumerate(losses)]
    result = Result(
        logloss=min(losses),
        auc=0.7,
        is_stopped=is_stopped,
        rows=10 * len(losses),
        curve=curve,
        macs=macs,
        bytes=4 * macs,
        parameters=macs,
        bytes_per_row=64,
    )
    return Outcome(result=result, error=None)
