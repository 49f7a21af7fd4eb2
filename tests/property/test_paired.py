"""The paired bootstrap over cells agrees with one over rows, and its error rate is the level."""

from collections.abc import Iterable
from dataclasses import astuple

import numpy as np
import pytest
from numpy.typing import NDArray

from training.promotion import paired_bootstrap
from training.promotion.checks import not_worse_check
from training.promotion.paired_bootstrap import Difference, PairedBootstrap

LEVEL = 0.05
FEW_RESAMPLES = 100  # enough to estimate a share of failed checks, and fast

Labels = NDArray[np.uint8]
Scores = NDArray[np.float32]
Floats = NDArray[np.float64]
Pair = tuple[Labels, Scores, Scores]  # labels, champion's scores, challenger's scores


def draw(num_rows: int, noises: tuple[float, float], seed: int) -> Pair:
    """Draw labels, and the scores of two models whose logits have independent normal errors."""
    random = np.random.default_rng(seed)
    logits_N = random.normal(-1.5, 1.3, num_rows)
    labels_N = (random.random(num_rows) < sigmoid(logits_N)).astype(np.uint8)
    champion_N, challenger_N = (
        sigmoid(logits_N + random.normal(0, noise, num_rows)).astype(np.float32) for noise in noises
    )
    return labels_N, champion_N, challenger_N


def sigmoid(logits_N: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits_N)))


def losses(labels_N: Labels, scores_N: Scores) -> Floats:
    p_N = np.clip(scores_N.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.where(labels_N == 1, -np.log(p_N), -np.log1p(-p_N))


def auc(labels_N: Labels, scores_N: Scores) -> float:
    """Return the share of correctly ordered pairs of a clicked and another row; ties count half."""
    others = np.sort(scores_N[labels_N == 0])
    clicked = scores_N[labels_N == 1]
    num_lower = [
        np.searchsorted(others, clicked, side="left"),
        np.searchsorted(others, clicked, side="right"),
    ]
    return float(np.mean(num_lower) / len(others))


def differences(
    labels_N: Labels, champion_N: Scores, challenger_N: Scores, num_pieces: int = 1
) -> dict[str, Difference]:
    bootstrap = PairedBootstrap()
    for piece in np.array_split(np.arange(len(labels_N)), num_pieces):
        bootstrap.add(labels_N[piece], champion_N[piece], challenger_N[piece])
    return bootstrap.differences()


def resampled_differences(
    labels_N: Labels, champion_N: Scores, challenger_N: Scores, num_rounds: int = 500
) -> dict[str, Floats]:
    """Resample the rows, and return the difference of each metric in each resample."""
    random = np.random.default_rng(5)
    logloss_R, auc_R = np.empty((2, num_rounds))
    difference_N = losses(labels_N, challenger_N) - losses(labels_N, champion_N)
    for k in range(num_rounds):
        rows = random.integers(0, len(labels_N), len(labels_N))
        logloss_R[k] = difference_N[rows].mean()
        auc_R[k] = auc(labels_N[rows], challenger_N[rows]) - auc(labels_N[rows], champion_N[rows])
    return {"logloss": logloss_R, "auc": auc_R}


@pytest.mark.parametrize(
    "noises",
    [(0.3, 0.4), (0.5, 0.005), (0.004, 0.004)],
    ids=["alike", "far apart", "nearly the same model"],
)
def test_intervals_agree_with_a_bootstrap_of_rows(noises: tuple[float, float]) -> None:
    rows = draw(4000, noises, seed=1)
    actual = differences(*rows)
    for name, drawn_R in resampled_differences(*rows).items():
        if name == "auc" and max(noises) < 1 / paired_bootstrap.BINS_PER_UNIT:
            continue  # most rows are ties for both models, so this AUC is another, coarser metric
        difference, (low, high) = actual[name], np.percentile(drawn_R, (2.5, 97.5))
        width = high - low
        # The ends of a bootstrap interval are random too.
        assert difference.high - difference.low == pytest.approx(width, rel=0.2), name
        assert difference.low == pytest.approx(low, abs=0.15 * width)
        assert difference.high == pytest.approx(high, abs=0.15 * width)
        worse_R = drawn_R > 0 if name == "logloss" else drawn_R < 0
        assert difference.worse == pytest.approx(np.mean(worse_R), abs=0.1)


def test_values_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not depend on the resamples."""
    monkeypatch.setattr(paired_bootstrap, "NUM_RESAMPLES", FEW_RESAMPLES)
    labels_N, champion_N, challenger_N = draw(20_000, (0.1, 0.6), seed=2)
    # On each of these two rows, one of the models is completely certain and wrong.
    champion_N[:2], challenger_N[:2], labels_N[:2] = (0, 1), (1, 0), (0, 1)
    actual = differences(labels_N, champion_N, challenger_N)
    expected = losses(labels_N, challenger_N).mean() - losses(labels_N, champion_N).mean()
    assert actual["logloss"].value == pytest.approx(expected, abs=1e-12)
    expected = auc(labels_N, challenger_N) - auc(labels_N, champion_N)
    assert actual["auc"].value == pytest.approx(expected, abs=1e-4)


def test_the_order_of_rows_does_not_matter() -> None:
    labels_N, champion_N, challenger_N = draw(5000, (0.2, 0.3), seed=3)
    order = np.random.default_rng(0).permutation(5000)
    in_order = differences(labels_N, champion_N, challenger_N)
    shuffled = differences(labels_N[order], champion_N[order], challenger_N[order], num_pieces=7)
    assert shuffled["auc"] == in_order["auc"]
    for name in ("value", "low", "high", "worse"):
        assert getattr(shuffled["logloss"], name) == pytest.approx(
            getattr(in_order["logloss"], name), abs=1e-12
        )


@pytest.mark.parametrize("label", [0, 1])
def test_rows_with_one_label_have_no_auc(label: int) -> None:
    _, champion_N, challenger_N = draw(300, (0.2, 0.3), seed=4)
    labels_N = np.full(300, label, np.uint8)
    actual = differences(labels_N, champion_N, challenger_N)
    assert actual.keys() == {"logloss"}
    assert actual["logloss"].value == pytest.approx(
        losses(labels_N, challenger_N).mean() - losses(labels_N, champion_N).mean()
    )


def test_a_single_click_is_enough() -> None:
    """Many resamples do not contain the click."""
    _, champion_N, challenger_N = draw(50, (0.2, 0.3), seed=4)
    labels_N = np.zeros(50, np.uint8)
    labels_N[7] = 1
    actual = differences(labels_N, champion_N, challenger_N)
    assert np.isfinite([actual["auc"].low, actual["auc"].high]).all()


def test_a_model_is_not_worse_than_itself() -> None:
    labels_N, scores_N, _ = draw(2000, (0.5, 0.5), seed=5)
    for name, difference in differences(labels_N, scores_N, scores_N).items():
        assert difference == Difference(value=0, low=0, high=0, worse=0)
        assert not_worse_check(name, difference, LEVEL).passed


def failure_rates(days: Iterable[Pair]) -> dict[str, float]:
    """Return, for each metric, the share of days on which the challenger fails the check."""
    passed = [
        {
            name: not_worse_check(name, difference, LEVEL).passed
            for name, difference in differences(*day).items()
        }
        for day in days
    ]
    return {name: float(np.mean([not day[name] for day in passed])) for name in passed[0]}


@pytest.mark.parametrize("noise", [0.5, 0.004], ids=["different models", "nearly the same model"])
def test_an_equally_good_model_fails_at_the_rate_of_the_level(
    monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    monkeypatch.setattr(paired_bootstrap, "NUM_RESAMPLES", FEW_RESAMPLES)
    num_days = 250
    rates = failure_rates(draw(500, (noise, noise), seed=k) for k in range(num_days))
    tolerance = 3 * np.sqrt(LEVEL * (1 - LEVEL) / num_days)
    assert all(abs(rate - LEVEL) < tolerance for rate in rates.values()), rates


def test_a_worse_model_fails_and_a_better_one_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired_bootstrap, "NUM_RESAMPLES", FEW_RESAMPLES)
    assert min(failure_rates(draw(5000, (0.2, 0.8), seed=k) for k in range(5)).values()) == 1
    assert max(failure_rates(draw(5000, (0.8, 0.2), seed=k) for k in range(5)).values()) == 0
    biased = []
    for k in range(5):
        labels_N, champion_N, _ = draw(5000, (0.2, 0.2), seed=k)
        logits_N = np.log(champion_N / (1 - champion_N))
        biased.append((labels_N, champion_N, sigmoid(logits_N + 1).astype(np.float32)))
    # A biased model orders the rows as well as before, but predicts too many clicks.
    assert failure_rates(biased) == {"logloss": 1, "auc": 0}


def test_a_row_of_the_weight_2_counts_as_two_rows() -> None:
    labels_N, champion_N, challenger_N = draw(300, (0.3, 0.5), seed=4)
    weights_N = np.arange(300) % 3
    weighted = PairedBootstrap()
    weighted.add(labels_N, champion_N, challenger_N, weights_N.astype(np.float32))
    repeated = differences(
        *(np.repeat(each, weights_N) for each in (labels_N, champion_N, challenger_N))
    )
    for name, difference in weighted.differences().items():
        assert difference.value == pytest.approx(repeated[name].value, abs=1e-12)


def test_equal_weights_give_the_intervals_of_no_weights() -> None:
    rows = draw(300, (0.3, 0.5), seed=4)
    weighted = PairedBootstrap()
    weighted.add(*rows, np.full(300, 2, np.float32))
    for name, difference in weighted.differences().items():
        expected = differences(*rows)[name]
        assert astuple(difference) == pytest.approx(astuple(expected), rel=1e-9)
