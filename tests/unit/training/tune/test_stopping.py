"""Limits equal those of a brute-force evaluation of each rule."""

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.tune import Halving, Median, NoStopping
from training.tune.outcome import CurvePoint
from training.tune.stopping import Finished, Limit, limits_of, loss_at, rungs

VALIDATIONS = 10


def curve(losses: list[float], shift: float = 0.0) -> list[CurvePoint]:
    """Return validations at shares of tenths, moved by a part of a tenth."""
    return [
        CurvePoint(share=min(1.0, (k + 1 + shift) / VALIDATIONS), logloss=loss, auc=None)
        for k, loss in enumerate(losses)
    ]


@st.composite
def trials(draw: st.DrawFn) -> list[Finished]:
    losses = st.lists(st.floats(0.3, 0.9), min_size=1, max_size=VALIDATIONS)
    shifts = st.floats(0, 0.5)
    count = draw(st.integers(0, 12))
    return [Finished(k, curve(draw(losses), draw(shifts))) for k in range(count)]


def reached(trial: Finished, share: float) -> float | None:
    """Return the lowest loss up to the first validation at or after the share, the slow way."""
    lowest = None
    for point in trial.curve:
        lowest = point.logloss if lowest is None else min(lowest, point.logloss)
        if point.share >= share - 1e-9:
            return lowest
    return None


@given(trials())
def test_median_limits_are_the_medians_of_the_trials_that_got_there(known: list[Finished]) -> None:
    found = limits_of(Median(name="median", startup=3, warmup=0.25), 20, known, VALIDATIONS)
    expected = []
    if len(known) >= 3:
        for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            losses = [loss for one in known if (loss := reached(one, share)) is not None]
            if losses:
                expected.append((share, median(losses)))
    assert [(pytest.approx(one.share), one.logloss) for one in found] == expected


@given(trials(), st.integers(0, 30), st.sampled_from(["successive_halving", "hyperband"]))
def test_halving_keeps_the_best_of_eta_at_each_rung(
    known: list[Finished], number: int, name: str
) -> None:
    stop = Halving(name=name, eta=3, min_share=0.1)  # type: ignore[arg-type]
    found = {
        round(one.share, 6): one.logloss for one in limits_of(stop, number, known, VALIDATIONS)
    }
    all_rungs = (0.1, 0.3, 0.9)
    for k, rung in enumerate(all_rungs):
        bracket = number % 4 if name == "hyperband" else 0
        members = [one for one in known if name != "hyperband" or one.number % 4 <= k]
        losses = sorted(x for one in members if (x := reached(one, rung)) is not None)
        if k < bracket or not losses:
            assert rung not in found
            continue
        limit = found[rung]
        # A new trial that is just as good as the limit is among the best (n + 1) / 3, at least 1.
        num_kept = max(1, (len(losses) + 1) // 3)
        assert limit == losses[num_kept - 1]


def test_hyperband_deals_trials_out_to_brackets_the_last_of_which_stops_none() -> None:
    stop = Halving(name="hyperband", eta=3, min_share=0.1)
    assert [len(rungs(stop, number)) for number in range(5)] == [3, 2, 1, 0, 3]


def test_no_rule_and_no_known_trials_stop_nothing() -> None:
    known = [Finished(0, curve([0.5] * VALIDATIONS))]
    assert limits_of(NoStopping(name="none"), 1, known, VALIDATIONS) == []
    halving = Halving(name="successive_halving", eta=3, min_share=0.1)
    assert limits_of(halving, 1, [], VALIDATIONS) == []


def test_the_first_validation_at_or_after_a_share_counts() -> None:
    points = curve([0.9, 0.8, 0.85], shift=0.2)  # at .12, .22, .32
    assert loss_at(0.1, points) == 0.9
    assert loss_at(0.2, points) == 0.8
    assert loss_at(0.3, points) == 0.8
    assert loss_at(0.4, points) is None


def test_limits_are_in_the_order_of_their_shares() -> None:
    known = [Finished(k, curve([0.5] * VALIDATIONS)) for k in range(5)]
    found = limits_of(Median(name="median", startup=1, warmup=0.05), 9, known, VALIDATIONS)
    assert found == sorted(found)
    assert found[0] == Limit(0.1, 0.5)
