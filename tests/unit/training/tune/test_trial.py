"""A trial is what the train stage would have trained, until a limit stops it."""

import csv
from pathlib import Path

import pytest

from common.bundle_layout import HISTORY, MODEL
from common.files import DataError
from tests.factories.features import training_params
from tests.factories.studies import linked_study
from training.stage import train
from training.tune.outcome import Outcome, Result
from training.tune.stopping import Limit
from training.tune.trial import Task, run_trial

VALUES = {
    "model.embedding_dim": 2,
    "model.top_mlp": [8, 4],
    "train.dense_optimizer.lr": 0.01,
}


def result_of(outcome: Outcome) -> Result:
    assert outcome.result is not None, outcome.error
    return outcome.result


def test_a_trial_equals_the_train_stage_with_its_values(tmp_path: Path) -> None:
    study = linked_study(tmp_path)
    task = study.task("trial", VALUES)
    result = result_of(run_trial(task))
    train(task.params, tmp_path)
    with (tmp_path / MODEL / HISTORY).open() as file:
        points = [row for row in csv.DictReader(file) if row["split"] == "valid"]
    assert [f"{point.logloss:.6f}" for point in result.curve] == [one["loss"] for one in points]
    assert [f"{point.auc:.6f}" for point in result.curve] == [one["auc"] for one in points]
    assert f"{result.logloss:.6f}" == min(one["loss"] for one in points)
    assert not result.is_stopped
    assert result.rows == 2 * 200


def test_a_trial_gives_the_same_outcome_twice(tmp_path: Path) -> None:
    task = linked_study(tmp_path).task("trial", VALUES)
    assert run_trial(task) == run_trial(task)


def test_a_trial_stops_at_the_first_validation_above_a_limit(tmp_path: Path) -> None:
    study = linked_study(tmp_path)
    task = study.task("trial", VALUES)
    whole = result_of(run_trial(task)).curve
    limits = [Limit(0.1, 10.0), Limit(0.3, whole[1].logloss - 1e-6), Limit(0.9, 0.0)]
    stopped = run_trial(Task(task.title, task.params, task.root, limits))
    result = result_of(stopped)
    assert result.is_stopped
    assert result.curve == whole[:2]
    assert 0 < result.rows < 2 * 200


def test_a_limit_that_is_just_met_stops_nothing(tmp_path: Path) -> None:
    task = linked_study(tmp_path).task("trial", VALUES)
    whole = result_of(run_trial(task))
    limits = [Limit(point.share, point.logloss) for point in whole.curve]
    exact = [
        Limit(limit.share, min(one.logloss for one in limits[: k + 1]))
        for k, limit in enumerate(limits)
    ]
    assert result_of(run_trial(Task(task.title, task.params, task.root, exact))) == whole


def test_a_limit_at_the_end_of_the_run_does_not_make_it_a_stopped_one(tmp_path: Path) -> None:
    task = linked_study(tmp_path).task("trial", VALUES)
    result = result_of(run_trial(Task(task.title, task.params, task.root, [Limit(1.0, 0.0)])))
    assert not result.is_stopped
    assert result.curve[-1].share == 1


def test_early_stopping_holds_in_a_trial(tmp_path: Path) -> None:
    params = training_params(validations=12, epochs=2, early_stopping_patience=1)
    params = params.model_copy(
        update={
            "train": params.train.model_copy(
                update={
                    "dense_optimizer": params.train.dense_optimizer.model_copy(update={"lr": 3.0})
                }
            )
        }
    )
    study = linked_study(tmp_path, params, space={"model.embedding_dim": {"choice": [2, 4]}})
    result = result_of(run_trial(study.task("trial", {"model.embedding_dim": 2})))
    assert result.curve[-1].share < 1
    assert not result.is_stopped


def test_a_training_that_diverges_is_an_outcome_with_its_reason(tmp_path: Path) -> None:
    values = {**VALUES, "train.dense_optimizer.lr": 0.1}
    study = linked_study(
        tmp_path, set={"train.dense_optimizer.name": "sgd", "train.embedding_optimizer.lr": 1e30}
    )
    outcome = run_trial(study.task("trial", values))
    assert outcome.result is None
    assert outcome.error is not None
    assert outcome.error.startswith("Diverged: ")
    assert " at step " in outcome.error


def test_damaged_features_are_not_the_fault_of_the_trial(tmp_path: Path) -> None:
    task = linked_study(tmp_path).task("trial", VALUES)
    for path in (task.root / "artifacts/features/train").iterdir():
        path.unlink()
    (task.root / "artifacts/features/manifest.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        run_trial(task)


def test_the_costs_are_those_of_the_model(tmp_path: Path) -> None:
    study = linked_study(tmp_path)
    small = result_of(run_trial(study.task("small", VALUES)))
    large = result_of(run_trial(study.task("large", {**VALUES, "model.embedding_dim": 4})))
    assert small.bytes_per_row == 26 * 2 * 4
    assert large.bytes_per_row == 26 * 4 * 4
    assert small.macs < large.macs
    assert small.parameters < large.parameters
