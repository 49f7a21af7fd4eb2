"""Each sampler's choice follows from the search and the known trials alone."""

from itertools import product
from typing import Any

import pytest

from tests.factories.studies import make_tune, outcome
from training.tune.journal import Trial
from training.tune.outcome import Outcome
from training.tune.samplers import ask, num_trials

SAMPLERS: list[dict[str, Any]] = [
    {"name": "random"},
    {"name": "tpe", "startup": 3},
    {"name": "nsga2", "population": 4},
]
GRID: dict[str, Any] = {
    "model.top_mlp": {"choice": [[4], [8, 4]]},
    "model.interaction": {"choice": [{"name": "dot"}, {"name": "cat"}]},
    "train.batch_size": {"choice": [16, 32, 64]},
}


def loss_of(values: dict[str, Any]) -> float:
    """Return a loss that is lowest at a learning rate of .01 and a dim of 4."""
    return float(
        abs(values["train.dense_optimizer.lr"] - 0.01) + 0.1 / values["model.embedding_dim"]
    )


def run(sampler: dict[str, Any], count: int, window: int = 1, **changes: Any) -> list[Trial]:
    """Return trials, each of which knows those up to `window` before it."""
    tune = make_tune(sampler=sampler, **changes)
    trials: list[Trial] = []
    for number in range(count):
        values, notes = ask(tune, number, trials[: max(0, number - window + 1)])
        made = outcome([loss_of(values)], macs=values["model.embedding_dim"])
        if number == 5:
            made = Outcome(result=None, error="Diverged")
        trials.append(Trial(number=number, values=values, outcome=made, notes=notes))
    return trials


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_known_trials_give_the_same_values(sampler: dict[str, Any]) -> None:
    first, second = run(sampler, 15), run(sampler, 15)
    assert first == second
    values = [str(trial.values) for trial in first]
    assert len(set(values)) > 10, "the trials must not repeat each other"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resumed_search_goes_on_with_other_values(sampler: dict[str, Any]) -> None:
    """Optuna's own samplers begin again with the first values after a restart."""
    tune = make_tune(sampler=sampler)
    trials = run(sampler, 6)
    next_values, _ = ask(tune, 6, trials)
    assert next_values not in [trial.values for trial in trials]


def test_values_lie_in_the_space_and_have_three_digits() -> None:
    for trial in run({"name": "random"}, 30):
        assert trial.values["model.embedding_dim"] in (2, 4)
        assert trial.values["model.top_mlp"] in ([4], [8, 4])
        rate = trial.values["train.dense_optimizer.lr"]
        assert 0.001 <= rate <= 0.1
        assert rate == float(f"{rate:.3g}")


def test_whole_ranges_give_whole_numbers() -> None:
    space = {"train.batch_size": {"low": 8, "high": 512, "log": True}}
    tune = make_tune(sampler={"name": "random"}, space=space)
    sizes = [ask(tune, number, [])[0]["train.batch_size"] for number in range(20)]
    assert all(isinstance(size, int) and 8 <= size <= 512 for size in sizes)
    assert len(set(sizes)) > 10


def test_tpe_finds_lower_losses_than_random_search() -> None:
    losses = {}
    for sampler in ({"name": "random"}, {"name": "tpe", "startup": 8}):
        trials = run(sampler, 40, objectives=["logloss"])[20:]
        losses[sampler["name"]] = sum(loss_of(one.values) for one in trials) / len(trials)
    assert losses["tpe"] < 0.7 * losses["random"]


def test_nsga2_keeps_generations_over_a_restart() -> None:
    trials = run({"name": "nsga2", "population": 4}, 16, objectives=["logloss", "macs"])
    generations = [list(trial.notes.values()) for trial in trials]
    assert any(3 in values for values in generations), generations


def test_grid_covers_every_combination_once_in_an_order_of_the_seed() -> None:
    orders = []
    for seed in (1, 2):
        tune = make_tune(sampler={"name": "grid"}, space=GRID, trials=100, seed=seed)
        assert num_trials(tune) == 12
        orders.append([ask(tune, number, [])[0] for number in range(12)])
    choices = [GRID[key]["choice"] for key in GRID]
    expected = [dict(zip(GRID, values, strict=True)) for values in product(*choices)]
    for order in orders:
        assert sorted(map(str, order)) == sorted(map(str, expected))
    assert orders[0] != orders[1]
