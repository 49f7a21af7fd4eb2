"""What keeps a model out of production: each check passes at its bound and fails beyond it, and chance alone fails none."""

import numpy as np
import polars as pl
import pytest

from tests.factories.support import make_params
from training.evaluation import metrics
from training.promotion.checks import (
    check_calibration,
    check_data,
    check_not_worse,
    check_skill,
    error_by_chance,
)
from training.promotion.paired_bootstrap import Difference

PROMOTE = make_params().promote
CERTAIN = pl.DataFrame(
    {"mean_score": [0.0, 1.0], "num_rows": [100, 100]}
)  # chance explains nothing
FIGURES = {
    "calibration_ratio": 1.0,
    "calibration_ratio_low": 0.9,
    "calibration_ratio_high": 1.1,
    "ece": 0.0,
}


def passed(bins=CERTAIN, **changed):
    return {
        check.name: check.passed for check in check_calibration(FIGURES | changed, bins, PROMOTE)
    }


def judged(labels_N, scores_N, num_rounds=200):
    """Figures and bins, as the evaluate stage leaves them."""
    sums = metrics.sums_of_rows(labels_N, scores_N.astype(np.float32))
    bins = sums.pool(metrics.ECE_BINS)
    table = pl.DataFrame(
        {
            "mean_score": bins.score,
            "click_rate": bins.clicks / bins.rows,
            "num_rows": bins.rows.astype(np.int64),
        }
    )
    return metrics.figures(sums) | metrics.interval(sums, num_rounds, 1), table


def draw(num_rows, seed, times=1.0, num_rounds=200):
    """A day of scores that are the click probabilities themselves, but for a factor on the odds; 21 % click."""
    random = np.random.default_rng(seed)
    odds_N = np.exp(random.normal(-1.6, 1, num_rows))
    return judged(
        (random.random(num_rows) < odds_N / (1 + odds_N)).astype(np.uint8),
        times * odds_N / (1 + times * odds_N),
        num_rounds,
    )


def refusals(num_days, num_rows, times=1.0):
    """Check -> the share of days on which it keeps the champion."""
    days = [
        passed(bins, **figures)
        for figures, bins in (draw(num_rows, seed, times) for seed in range(num_days))
    ]
    return {name: 1 - np.mean([day[name] for day in days]) for name in days[0]}


def test_data():
    (nothing,) = check_data([])
    assert nothing.passed
    lines = ["day_3: one thing", "day_4: another"]
    assert [(check.name, check.passed, check.found) for check in check_data(lines)] == [
        ("data", False, line) for line in lines
    ]


def test_skill_is_less_than_the_entropy_of_the_click_rate():
    assert check_skill({"normalized_entropy": 0.9999}).passed
    assert not check_skill({"normalized_entropy": 1.0}).passed


@pytest.mark.parametrize("label", [0, 1])
def test_nothing_is_told_from_one_label(label):
    figures, bins = judged(
        np.full(500, label, np.uint8), np.random.default_rng(0).uniform(0.1, 0.4, 500)
    )
    skill = check_skill(figures)
    assert not skill.passed
    assert "one label only" in skill.found
    calibration, error = check_calibration(figures, bins, PROMOTE)
    assert not calibration.passed
    assert ("no click to predict" in calibration.found) == (label == 0)
    assert not error.passed


@pytest.mark.parametrize(
    ("low", "high", "passes"),
    [
        (0.5, 0.79, False),
        (0.5, 0.8, True),
        (1.0, 1.1, True),
        (0.1, 9, True),
        (1.25, 2, True),
        (1.26, 2, False),
    ],
)
def test_the_interval_of_the_ratio_reaches_what_may_be(low, high, passes):
    found = passed(
        calibration_ratio=(low + high) / 2, calibration_ratio_low=low, calibration_ratio_high=high
    )
    assert found == {"calibration": passes, "calibration error": True}


def test_the_calibration_error_may_be_as_much_as_is_said():
    assert passed(ece=0.03)["calibration error"]
    assert not passed(ece=0.0301)["calibration error"]


def test_error_by_chance_is_hardly_exceeded_and_often_nearly_reached():
    """By calibrated scores: one day in forty is above it."""
    errors = [
        figures["ece"] / error_by_chance(bins)
        for figures, bins in (draw(500, seed, num_rounds=1) for seed in range(300))
    ]
    assert 0 < np.mean(np.array(errors) > 1) < 0.06
    assert np.quantile(errors, 0.9) > 0.85


@pytest.mark.parametrize("num_rows", [60, 300, 1500])
def test_a_calibrated_model_passes_however_small_the_day(num_rows):
    assert max(refusals(80, num_rows).values()) <= 0.06


def test_a_miscalibrated_model_is_refused_once_the_day_is_large_enough():
    times = 2.0  # 1.57 times the clicks, and a bin's rate is 0.11 off
    assert refusals(10, 20_000, times) == {"calibration": 1, "calibration error": 1}
    assert max(refusals(20, 30, times).values()) < 1


@pytest.mark.parametrize(
    ("worse", "passes"), [(0.0, True), (0.949, True), (0.95, False), (1.0, False)]
)
def test_a_challenger_is_refused_where_it_is_worse_for_sure(worse, passes):
    check = check_not_worse("logloss", Difference(0.0012, -0.0001, 0.0025, worse), 0.05)
    assert (check.name, check.passed) == ("logloss", passes)
    assert (
        check.found
        == f"+0.00120 to the champion (-0.00010 to +0.00250), worse in {worse:.1%} of resamples; below 95.0% may be"
    )
