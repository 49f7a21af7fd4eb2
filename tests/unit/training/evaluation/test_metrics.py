"""Every metric agrees with scikit-learn or with a slow version written from its definition."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score, roc_curve

from training.evaluation import metrics

RNG = np.random.default_rng(7)


def rows(num_rows: int, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels with the scores as probabilities, so that the scores are perfectly calibrated."""
    scores = RNG.beta(2, 6, num_rows).astype(np.float32)
    labels = (RNG.random(num_rows) < scores).astype(np.uint8)
    return labels, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_equal_those_of_scikit_learn(ties: bool) -> None:
    labels, scores = rows(5000, ties=ties)
    actual = metrics.metrics_of_rows(labels, scores)
    assert actual["auc"] == pytest.approx(roc_auc_score(labels, scores), rel=1e-12)
    clipped = np.clip(scores.astype(np.float64), metrics.LOGLOSS_EPS, 1 - metrics.LOGLOSS_EPS)
    assert actual["logloss"] == pytest.approx(log_loss(labels, clipped), rel=1e-12)
    base = log_loss(labels, np.full(len(labels), labels.mean()))
    assert actual["normalized_entropy"] == pytest.approx(
        log_loss(labels, clipped) / base, rel=1e-12
    )
    assert actual["accuracy"] == accuracy_score(labels, scores > 0.5)
    assert actual["num_rows"] == 5000
    assert actual["label_rate"] == labels.mean()
    assert actual["mean_score"] == pytest.approx(scores.astype(np.float64).mean(), rel=1e-12)
    assert actual["calibration_ratio"] == pytest.approx(
        scores.astype(np.float64).sum() / labels.sum(), rel=1e-12
    )


def test_auc_of_every_small_case_equals_its_definition() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels, scores = rng.integers(0, 2, 7), rng.integers(0, 4, 7) / 4
        clicked, other = scores[labels == 1], scores[labels == 0]
        pairs = [1.0 if c > o else 0.5 if c == o else 0.0 for c in clicked for o in other]
        actual = metrics.auc(metrics.sums_of_rows(labels, scores))
        assert actual == (pytest.approx(np.mean(pairs)) if pairs else None)


def test_no_metric_depends_on_the_order_of_the_rows() -> None:
    labels, scores = rows(3000, ties=True)
    order = RNG.permutation(3000)
    assert metrics.metrics_of_rows(labels, scores) == pytest.approx(
        metrics.metrics_of_rows(labels[order], scores[order]), rel=1e-12
    )
    drawn = [
        metrics.bootstrap_intervals(metrics.sums_of_rows(labels[rows], scores[rows]), 50, 1)
        for rows in (slice(None), order)
    ]
    assert drawn[0] == pytest.approx(drawn[1], rel=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_auc_and_no_normalized_entropy(label: int) -> None:
    labels, scores = np.full(50, label, np.uint8), RNG.random(50)
    actual = metrics.metrics_of_rows(labels, scores) | metrics.bootstrap_intervals(
        metrics.sums_of_rows(labels, scores), 20, 1
    )
    ratio = (
        [] if label else ["calibration_ratio", "calibration_ratio_low", "calibration_ratio_high"]
    )
    assert {name for name, value in actual.items() if value is None} == {
        "auc",
        "normalized_entropy",
        "auc_low",
        "auc_high",
        *ratio,
    }
    assert all(math.isfinite(value) for value in actual.values() if value is not None)


def test_scores_of_0_and_1_have_a_finite_logloss() -> None:
    actual = metrics.metrics_of_rows(np.array([1, 0, 1, 0]), np.array([0, 1, 1, 0], np.float32))
    assert actual["logloss"] == pytest.approx(-math.log(metrics.LOGLOSS_EPS) / 2, rel=1e-6)


def test_ece_equals_a_hand_computed_value_and_is_small_for_calibrated_scores() -> None:
    labels, scores = np.array([0, 1, 1, 1]), np.array([0.1, 0.1, 0.8, 0.8])
    assert metrics.metrics_of_rows(labels, scores)["ece"] == pytest.approx((2 * 0.4 + 2 * 0.2) / 4)
    assert (
        metrics.metrics_of_rows(*rows(200_000))["ece"] < 0.005
    )  # the noise of bins of 10,000 rows
    labels, scores = rows(200_000)
    halved = metrics.metrics_of_rows(labels, scores / 2)  # the mean score is 0.25
    assert halved["ece"] == pytest.approx(0.125, abs=0.01)


def test_equal_scores_share_one_group() -> None:
    scores = np.repeat([0.1, 0.2, 0.3], [50, 3, 47])
    groups = metrics.sums_of_rows(np.zeros(100), scores).groups(metrics.ECE_BINS)
    assert groups.rows.tolist() == [50, 3, 47]
    assert groups.score == pytest.approx([0.1, 0.2, 0.3])


def test_interval_equals_a_plain_bootstrap() -> None:
    labels, scores = rows(4000)
    aucs, losses, ratios = [], [], []
    for seed in range(400):
        drawn = np.random.default_rng(seed).integers(0, 4000, 4000)
        aucs.append(roc_auc_score(labels[drawn], scores[drawn]))
        losses.append(log_loss(labels[drawn], scores[drawn]))
        ratios.append(scores[drawn].sum() / labels[drawn].sum())
    actual = metrics.bootstrap_intervals(metrics.sums_of_rows(labels, scores), 2000, 3)
    for name, values in (("auc", aucs), ("logloss", losses), ("calibration_ratio", ratios)):
        low, high = np.percentile(values, metrics.INTERVAL_PERCENTILES)
        tolerance = 0.15 * (high - low)  # about three standard errors of a percentile of 400 draws
        assert actual[f"{name}_low"] == pytest.approx(low, abs=tolerance)
        assert actual[f"{name}_high"] == pytest.approx(high, abs=tolerance)


def test_the_interval_depends_on_the_seed_and_groups_keep_the_auc() -> None:
    labels, scores = rows(1_000_000)
    sums = metrics.sums_of_rows(labels, scores)
    first, again, other = (metrics.bootstrap_intervals(sums, 200, seed) for seed in (1, 1, 2))
    assert first == again != other
    exact, (fpr, tpr) = metrics.auc(sums), metrics.roc_curve(sums.groups(metrics.FINE_BINS))
    assert exact == pytest.approx(np.trapezoid(tpr, fpr), abs=1e-5)
    assert first["auc_low"] < exact < first["auc_high"]


def test_roc_points_lie_on_scikit_learns_curve() -> None:
    labels, scores = rows(2000)
    fpr, tpr = metrics.roc_curve(metrics.sums_of_rows(labels, scores).groups(metrics.ECE_BINS))
    expected_fpr, expected_tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    points = set(zip(expected_fpr.round(9), expected_tpr.round(9), strict=True))
    assert set(zip(fpr.round(9), tpr.round(9), strict=True)) <= points
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)


def test_gain_counts_the_clicks_of_the_rows_with_the_highest_scores() -> None:
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.2, 0.3])
    shown, caught = metrics.gain_curve(
        metrics.sums_of_rows(labels, scores).groups(metrics.ECE_BINS)
    )
    assert shown.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert caught.tolist() == [0, 0.5, 1, 1, 1]


def test_groups_have_equally_many_rows_and_the_means_of_their_rows() -> None:
    labels, scores = rows(10_007)
    groups = metrics.sums_of_rows(labels, scores).groups(metrics.ECE_BINS)
    assert len(groups.rows) == metrics.ECE_BINS
    assert np.abs(groups.rows - 10_007 / metrics.ECE_BINS).max() < 5  # except for ties
    order = np.argsort(scores, kind="stable")
    ends = np.cumsum(groups.rows).astype(int)
    parts = list(
        zip(
            np.split(labels[order], ends[:-1]),
            np.split(scores[order].astype(np.float64), ends[:-1]),
            strict=True,
        )
    )
    assert groups.clicks.tolist() == [part.sum() for part, _ in parts]
    for actual, expected in (
        (groups.score, [part.mean() for _, part in parts]),
        (groups.loss_click, [-np.log(part).mean() for _, part in parts]),
        (groups.loss_other, [-np.log1p(-part).mean() for _, part in parts]),
    ):
        assert actual == pytest.approx(expected, rel=1e-12)
