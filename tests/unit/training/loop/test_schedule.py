"""The schedule of a run: its steps, validations, points of the curves, and learning rates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.config.loading import ConfigError
from tests.factories.features import training_params, write_features
from training.loop.schedule import Schedule, check_schedule, lr_factor
from training.stage import train


def test_learning_rate_schedule() -> None:
    """The factor rises linearly from 1/N, stays at 1, then falls as ((D - (s - start)) / D)^2."""
    params = training_params(warmup_steps=4, decay_steps=2).train
    assert [lr_factor(step, 8, params) for step in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.25]
    assert lr_factor(0, 8, training_params().train) == lr_factor(7, 8, training_params().train) == 1


def test_the_schedule_reaches_both_optimizers(tmp_path: Path) -> None:
    """In the first of 10 warm-up steps, rates ten times as high have the same effect."""
    found = []
    for name, lr, schedule in (("warm", 0.1, {"warmup_steps": 10}), ("plain", 0.01, {})):
        write_features(tmp_path / name, {"train": [64], "valid": [101], "test": [0]})
        optimizers = {
            "dense_optimizer": {"name": "sgd", "lr": lr},
            "embedding_optimizer": {"name": "rowwise_adagrad", "lr": lr},
        }
        with pytest.MonkeyPatch.context() as patch:
            # The run has one step, so the warm-up is too long for it.
            patch.setattr("training.stage.check_schedule", lambda *_: None)
            train(training_params(**optimizers, **schedule), tmp_path / name)
        found.append(load_file(tmp_path / name / "artifacts/model/weights.safetensors"))
    for name, weights in found[0].items():
        torch.testing.assert_close(weights, found[1][name], atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"warmup_steps": 8, "decay_steps": 5},
            r"warmup_steps 8 and decay_steps 5 are more than the 12 steps of the run",
        ),
        (
            {"early_stopping_patience": 4},
            r"early_stopping_patience is 4, but only 4 validations count, so it would never stop",
        ),
        (
            {"early_stopping_patience": 2, "reset_embeddings_each_epoch": True},
            r"early_stopping_patience is 2, but only 2 ends of epochs, with reset_embeddings_each_epoch, count",
        ),
    ],
)
def test_a_value_that_the_run_is_too_short_for_is_refused(
    values: dict[str, Any], reason: str
) -> None:
    schedule = Schedule.make(2, 6, 4)
    with pytest.raises(ConfigError, match=reason):
        check_schedule(training_params(epochs=2, **values).train, schedule)
    check_schedule(
        training_params(epochs=2, warmup_steps=8, decay_steps=4, early_stopping_patience=3).train,
        schedule,
    )


@pytest.mark.parametrize("validations", [1, 3, 20, 60, 500])
@pytest.mark.parametrize("epochs", [1, 3, 110])
@pytest.mark.parametrize("steps_per_epoch", [1, 2, 11, 100, 4395])
def test_a_schedule(epochs: int, steps_per_epoch: int, validations: int) -> None:
    """Each epoch ends with a validation, and there are about as many as the parameter says.

    Each validation is at a point of the training curve.
    """
    schedule = Schedule.make(epochs, steps_per_epoch, validations)
    assert schedule.num_steps == epochs * steps_per_epoch
    ends = [step for step in range(1, schedule.num_steps + 1) if schedule.validates_at(step)]
    assert len(ends) == schedule.num_validations
    assert all(schedule.records_at(step) for step in ends)
    epoch_ends = [step for step in ends if schedule.is_end_of_epoch(step)]
    assert epoch_ends == [steps_per_epoch * k for k in range(1, epochs + 1)]
    assert len(ends) <= max(validations, epochs)
    assert len(ends) > validations / 2 or steps_per_epoch < 4 * validations
    assert sum(schedule.records_at(step) for step in range(1, schedule.num_steps + 1)) <= 2 * max(
        100, len(ends)
    )
