"""The front, the trade and the recommendation."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories.studies import make_tune, outcome
from training.tune.choice import (
    Candidate,
    best_trials,
    candidates_of,
    pareto_front,
    recommended,
    result_of,
    traded,
)
from training.tune.journal import Confirmation, Trial
from training.tune.outcome import Outcome

FAILED = Outcome(result=None, error="Diverged: train loss nan at step 3")


def trial(number: int, loss: float, macs: int, *, is_stopped: bool = False) -> Trial:
    made = outcome([loss], macs=macs, is_stopped=is_stopped)
    return Trial(number=number, values={"n": number}, outcome=made, notes={})


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.integers(1, 4)), max_size=12))
def test_the_front_has_what_no_other_trial_beats(points: list[tuple[float, int]]) -> None:
    trials = [trial(k, loss, macs) for k, (loss, macs) in enumerate(points)]
    front = {one.number for one in pareto_front(trials, ["logloss", "macs"])}
    for k, (loss, macs) in enumerate(points):
        is_beaten = any(
            other_loss <= loss and other_macs <= macs and (other_loss, other_macs) != (loss, macs)
            for other_loss, other_macs in points
        )
        assert (k in front) == (not is_beaten)


def test_stopped_and_failed_trials_are_not_on_the_front_and_not_confirmed() -> None:
    trials = [
        trial(0, 0.1, 1, is_stopped=True),
        Trial(number=1, values={}, outcome=FAILED, notes={}),
        trial(2, 0.3, 5),
    ]
    assert [one.number for one in pareto_front(trials, ["logloss", "macs"])] == [2]
    assert [one.number for one in best_trials(trials, make_tune())] == [2]


def test_half_the_cost_is_worth_what_trade_says() -> None:
    costs = {"macs": 800, "bytes": 1, "parameters": 1, "bytes_per_row": 1}
    half = costs | {"macs": 400}
    trade: Any = {"macs": 0.0005}
    assert traded(0.5, costs, trade) - traded(0.5, half, trade) == pytest.approx(0.0005)
    assert traded(0.5, costs, None) == 0.5


def test_trade_decides_which_trials_are_confirmed() -> None:
    trials = [trial(0, 0.4700, 800), trial(1, 0.4704, 400), trial(2, 0.4712, 200)]
    tune = make_tune(confirm={"best": 1, "seeds": 2})
    assert best_trials(trials, tune)[0].number == 0
    assert best_trials(trials, make_tune(trade={"macs": 0.0005}))[0].number == 1
    assert best_trials(trials, make_tune(trade={"macs": 0.002}))[0].number == 2


def confirmed(
    present: list[float], *others: tuple[list[float], int], **changes: Any
) -> list[Candidate]:
    """Return the candidates of losses by seed; params.yaml has 800 multiply-adds."""
    runs = [(None, present, 800), *((k, losses, macs) for k, (losses, macs) in enumerate(others))]
    confirmations = [
        Confirmation(trial=number, seed=seed, outcome=outcome([loss], macs=macs))
        for number, losses, macs in runs
        for seed, loss in enumerate(losses)
    ]
    trials = {k: trial(k, min(losses), macs) for k, (losses, macs) in enumerate(others)}
    return candidates_of(confirmations, trials, make_tune(**changes))


PRESENT = [0.4740, 0.4745, 0.4750]  # a spread of .0005


def test_a_trial_is_better_only_beyond_the_spread_of_the_seeds() -> None:
    lucky, better = [0.4738, 0.4743, 0.4748], [0.4730, 0.4735, 0.4740]
    present, first, second = confirmed(PRESENT, (lucky, 800), (better, 800))
    assert present.trial is None
    assert (first.trial, first.verdict) == (1, "better")
    assert (second.trial, second.verdict) == (0, "not better")
    found = recommended([present, first, second])
    assert found is not None
    assert found.trial == 1


def test_as_good_counts_only_if_it_is_cheaper() -> None:
    same = [0.4742, 0.4747, 0.4752]
    assert [one.verdict for one in confirmed(PRESENT, (same, 800))][1:] == ["not better"]
    assert [one.verdict for one in confirmed(PRESENT, (same, 700))][1:] == ["as good and cheaper"]
    worse = [0.4752, 0.4757, 0.4762]
    assert [one.verdict for one in confirmed(PRESENT, (worse, 8))][1:] == ["not better"]
    assert recommended(confirmed(PRESENT, (worse, 8))) is None


def test_with_trade_a_higher_logloss_can_be_better() -> None:
    worse = [0.4752, 0.4757, 0.4762]
    found = confirmed(PRESENT, (worse, 50), trade={"macs": 0.0005})
    assert found[1].verdict == "better", "four times half the cost is worth .002"


def test_a_training_that_failed_ends_neither_the_study_nor_the_comparison() -> None:
    trials = {0: trial(0, 0.47, 10), 1: trial(1, 0.47, 10)}
    runs = [
        Confirmation(trial=None, seed=2, outcome=outcome([0.48], macs=20)),
        Confirmation(trial=None, seed=3, outcome=outcome([0.49], macs=20)),
        Confirmation(trial=0, seed=2, outcome=FAILED),
        Confirmation(trial=0, seed=3, outcome=outcome([0.40], macs=10)),
        Confirmation(trial=1, seed=2, outcome=outcome([0.40], macs=10)),
        Confirmation(trial=1, seed=3, outcome=outcome([0.41], macs=10)),
    ]
    present, first, second = candidates_of(runs, trials, make_tune())
    assert present.verdict is None
    assert (first.trial, first.verdict) == (1, "better")
    assert (second.trial, second.verdict, second.error) == (0, "failed", FAILED.error)
    assert result_of(trials[0]).logloss == second.searched
