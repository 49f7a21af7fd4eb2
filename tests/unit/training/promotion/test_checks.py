"""The checks before promotion pass at their limits, fail beyond them, and rarely fail by chance."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from tests.factories.support import make_params
from training.evaluation import metrics
from training.promotion.checks import (
    calibration_checks,
    data_gate_checks,
    error_by_chance,
    not_worse_check,
    skill_check,
)
from training.promotion.paired_bootstrap import Difference

PROMOTE = make_params().promote
# Bins whose click rates are certain, so chance causes no calibration error.
CERTAIN = pl.DataFrame({"mean_score": [0.0, 1.0], "num_rows": [100, 100]})
CALIBRATED = {
    "calibration_ratio": 1.0,
    "calibration_ratio_low": 0.9,
    "calibration_ratio_high": 1.1,
    "ece": 0.0,
}
Evaluated = tuple[dict[str, Any], pl.DataFrame]


def passed(bins: pl.DataFrame = CERTAIN, **changes: Any) -> dict[str, bool]:
    """Run the calibration checks on changed metrics, and return by name whether each passed."""
    checks = calibration_checks(CALIBRATED | changes, bins, PROMOTE)
    return {check.name: check.passed for check in checks}


def evaluated(labels_N: NDArray[Any], scores_N: NDArray[Any], num_rounds: int = 200) -> Evaluated:
    """Return metrics and calibration bins, as the evaluate stage writes them."""
    sums = metrics.sums_of_rows(labels_N, scores_N.astype(np.float32))
    bins = sums.groups(metrics.ECE_BINS)
    table = pl.DataFrame(
        {
            "mean_score": bins.score,
            "click_rate": bins.clicks / bins.rows,
            "num_rows": bins.rows.astype(np.int64),
        }
    )
    return metrics.compute_metrics(sums) | metrics.bootstrap_intervals(sums, num_rounds, 1), table


def draw_day(num_rows: int, seed: int, factor: float = 1.0, num_rounds: int = 200) -> Evaluated:
    """Draw a day with a click rate of 21 %, whose scores are the click probabilities.

    The odds of the scores are multiplied by `factor`.
    """
    random = np.random.default_rng(seed)
    odds_N = np.exp(random.normal(-1.6, 1, num_rows))
    labels_N = (random.random(num_rows) < odds_N / (1 + odds_N)).astype(np.uint8)
    return evaluated(labels_N, factor * odds_N / (1 + factor * odds_N), num_rounds)


def failure_rates(num_days: int, num_rows: int, factor: float = 1.0) -> dict[str, float]:
    """Return, for each check, the share of days on which it fails."""
    days = [
        passed(bins, **values)
        for values, bins in (draw_day(num_rows, seed, factor) for seed in range(num_days))
    ]
    return {name: float(1 - np.mean([day[name] for day in days])) for name in days[0]}


def test_each_line_of_the_data_gate_is_a_failed_check() -> None:
    (check,) = data_gate_checks([])
    assert check.passed
    lines = ["day_3: one thing", "day_4: another"]
    assert [(check.name, check.passed, check.message) for check in data_gate_checks(lines)] == [
        ("data", False, line) for line in lines
    ]


def test_skill_is_a_normalised_entropy_below_1() -> None:
    assert skill_check({"normalized_entropy": 0.9999}).passed
    assert not skill_check({"normalized_entropy": 1.0}).passed


@pytest.mark.parametrize("label", [0, 1])
def test_rows_with_one_label_fail(label: int) -> None:
    scores_N = np.random.default_rng(0).uniform(0.1, 0.4, 500)
    values, bins = evaluated(np.full(500, label, np.uint8), scores_N)
    skill = skill_check(values)
    assert not skill.passed
    assert "one label only" in skill.message
    calibration, error = calibration_checks(values, bins, PROMOTE)
    assert not calibration.passed
    assert ("no test row was clicked" in calibration.message) == (label == 0)
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
def test_the_interval_of_the_ratio_has_to_overlap_the_allowed_range(
    low: float, high: float, passes: bool
) -> None:
    results = passed(
        calibration_ratio=(low + high) / 2, calibration_ratio_low=low, calibration_ratio_high=high
    )
    assert results == {"calibration": passes, "calibration error": True}


def test_the_calibration_error_may_be_as_large_as_its_limit() -> None:
    assert passed(ece=0.03)["calibration error"]
    assert not passed(ece=0.0301)["calibration error"]


def test_error_by_chance_is_rarely_exceeded_and_often_nearly_reached() -> None:
    """Calibrated scores exceed the error by chance on about one day in forty."""
    errors = [
        values["ece"] / error_by_chance(bins)
        for values, bins in (draw_day(500, seed, num_rounds=1) for seed in range(300))
    ]
    assert 0 < np.mean(np.array(errors) > 1) < 0.06
    assert np.quantile(errors, 0.9) > 0.85


@pytest.mark.parametrize("num_rows", [60, 300, 1500])
def test_a_calibrated_model_passes_with_any_number_of_rows(num_rows: int) -> None:
    assert max(failure_rates(80, num_rows).values()) <= 0.06


def test_a_miscalibrated_model_fails_if_the_day_has_enough_rows() -> None:
    factor = 2.0  # predicts 1.57 times the clicks; the score of a bin is 0.11 too high
    assert failure_rates(10, 20_000, factor) == {"calibration": 1, "calibration error": 1}
    assert max(failure_rates(20, 30, factor).values()) < 1


@pytest.mark.parametrize(
    ("worse", "passes"), [(0.0, True), (0.949, True), (0.95, False), (1.0, False)]
)
def test_a_challenger_fails_if_it_is_significantly_worse(worse: float, passes: bool) -> None:
    check = not_worse_check("logloss", Difference(0.0012, -0.0001, 0.0025, worse), 0.05)
    assert (check.name, check.passed) == ("logloss", passes)
    for part in ("+0.00120", "-0.00010 to +0.00250", f"{worse:.1%} of resamples", "95.0%"):
        assert part in check.message
