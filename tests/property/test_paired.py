"""The paired bootstrap over cells says what one over rows says, and refuses a challenger as often as it claims to."""

import numpy as np
import pytest

from training.promotion import paired_bootstrap as paired
from training.promotion.checks import check_not_worse
from training.promotion.paired_bootstrap import Paired

LEVEL = 0.05
ROUNDS = 100  # enough for a share of refusals, and fast


def draw(num_rows, noises, seed):
    """(labels, a model's scores for each noise): their logits stray from the true ones by independent normal errors."""
    random = np.random.default_rng(seed)
    logits_N = random.normal(-1.5, 1.3, num_rows)
    labels_N = (random.random(num_rows) < sigmoid(logits_N)).astype(np.uint8)
    return labels_N, *(
        sigmoid(logits_N + random.normal(0, noise, num_rows)).astype(np.float32) for noise in noises
    )


def sigmoid(logits_N):
    return 1 / (1 + np.exp(-logits_N))


def losses(labels_N, scores_N):
    p_N = np.clip(scores_N.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.where(labels_N == 1, -np.log(p_N), -np.log1p(-p_N))


def auc(labels_N, scores_N):
    """The share of pairs of a clicked row and another that are in order, ties counting one half."""
    others = np.sort(scores_N[labels_N == 0])
    ranks = [np.searchsorted(others, scores_N[labels_N == 1], side) for side in ("left", "right")]
    return np.mean(ranks) / len(others)


def differences(labels_N, champion_N, challenger_N, pieces=1):
    found = Paired()
    for piece in np.array_split(np.arange(len(labels_N)), pieces):
        found.add(labels_N[piece], champion_N[piece], challenger_N[piece])
    return found.differences()


def over_rows(labels_N, champion_N, challenger_N, num_rounds=500):
    """Name -> the differences in resamples of the rows themselves."""
    random = np.random.default_rng(5)
    drawn = {"logloss": [], "auc": []}
    difference_N = losses(labels_N, challenger_N) - losses(labels_N, champion_N)
    for _ in range(num_rounds):
        rows = random.integers(0, len(labels_N), len(labels_N))
        drawn["logloss"].append(difference_N[rows].mean())
        drawn["auc"].append(
            auc(labels_N[rows], challenger_N[rows]) - auc(labels_N[rows], champion_N[rows])
        )
    return {name: np.array(values) for name, values in drawn.items()}


@pytest.mark.parametrize(
    "noises",
    [(0.3, 0.4), (0.5, 0.005), (0.004, 0.004)],
    ids=["alike", "far apart", "nearly the same model"],
)
def test_intervals_are_those_of_a_bootstrap_of_rows(noises):
    labels_N, champion_N, challenger_N = draw(4000, noises, seed=1)
    found, expected = (
        differences(labels_N, champion_N, challenger_N),
        over_rows(labels_N, champion_N, challenger_N),
    )
    for name, drawn_R in expected.items():
        if name == "auc" and max(noises) < 1 / paired.STEPS_PER_UNIT:
            continue  # most rows are ties for both models: another, coarser figure, whose own test stands below
        one, low, high = found[name], *np.percentile(drawn_R, (2.5, 97.5))
        width = high - low
        assert one.high - one.low == pytest.approx(width, rel=0.2), (
            name
        )  # a bootstrap's ends stray themselves
        assert one.low == pytest.approx(low, abs=0.15 * width)
        assert one.high == pytest.approx(high, abs=0.15 * width)
        assert one.worse == pytest.approx(
            np.mean(drawn_R > 0 if name == "logloss" else drawn_R < 0), abs=0.1
        )


def test_values_are_exact():
    labels_N, champion_N, challenger_N = draw(20_000, (0.1, 0.6), seed=2)
    champion_N[:2], challenger_N[:2], labels_N[:2] = (
        (0, 1),
        (1, 0),
        (0, 1),
    )  # as sure as can be, and wrong
    found = differences(labels_N, champion_N, challenger_N)
    exact = losses(labels_N, challenger_N).mean() - losses(labels_N, champion_N).mean()
    assert found["logloss"].value == pytest.approx(exact, abs=1e-12)
    exact = auc(labels_N, challenger_N) - auc(labels_N, champion_N)
    assert found["auc"].value == pytest.approx(exact, abs=1e-4)


def test_the_order_of_rows_does_not_matter():
    rows = draw(5000, (0.2, 0.3), seed=3)
    order = np.random.default_rng(0).permutation(5000)
    found, shuffled = differences(*rows), differences(*(values[order] for values in rows), pieces=7)
    assert shuffled["auc"] == found["auc"]
    for name in ("value", "low", "high", "worse"):
        assert getattr(shuffled["logloss"], name) == pytest.approx(
            getattr(found["logloss"], name), abs=1e-12
        )


@pytest.mark.parametrize("label", [0, 1])
def test_rows_of_one_label_have_no_auc(label):
    _, champion_N, challenger_N = draw(300, (0.2, 0.3), seed=4)
    labels_N = np.full(300, label, np.uint8)
    found = differences(labels_N, champion_N, challenger_N)
    assert found.keys() == {"logloss"}
    assert found["logloss"].value == pytest.approx(
        losses(labels_N, challenger_N).mean() - losses(labels_N, champion_N).mean()
    )


def test_a_single_click_is_enough():
    """Many draws do not have it."""
    _, champion_N, challenger_N = draw(50, (0.2, 0.3), seed=4)
    found = differences(np.eye(1, 50, 7, dtype=np.uint8)[0], champion_N, challenger_N)
    assert np.isfinite([found["auc"].low, found["auc"].high]).all()


def test_a_model_is_not_worse_than_itself():
    labels_N, scores_N = draw(2000, (0.5,), seed=5)
    for name, one in differences(labels_N, scores_N, scores_N).items():
        assert (one.value, one.low, one.high, one.worse) == (0, 0, 0, 0)
        assert check_not_worse(name, one, LEVEL).passed


def refused(days):
    """Name -> the share of days on which the challenger is refused."""
    checks = [
        {name: check_not_worse(name, one, LEVEL).passed for name, one in differences(*day).items()}
        for day in days
    ]
    return {name: np.mean([not day[name] for day in checks]) for name in checks[0]}


@pytest.mark.parametrize(
    "noise", [0.5, 0.004], ids=["models of their own", "nearly the same model"]
)
def test_as_good_a_model_is_refused_as_rarely_as_the_level_says(monkeypatch, noise):
    monkeypatch.setattr(paired, "NUM_ROUNDS", ROUNDS)
    num_days = 250
    shares = refused(draw(500, (noise, noise), seed=k) for k in range(num_days))
    stray = 3 * np.sqrt(LEVEL * (1 - LEVEL) / num_days)
    assert all(abs(share - LEVEL) < stray for share in shares.values()), shares


def test_a_worse_model_is_refused_and_a_better_one_is_not(monkeypatch):
    monkeypatch.setattr(paired, "NUM_ROUNDS", ROUNDS)
    assert min(refused(draw(5000, (0.2, 0.8), seed=k) for k in range(5)).values()) == 1
    assert max(refused(draw(5000, (0.8, 0.2), seed=k) for k in range(5)).values()) == 0
    biased = [
        (
            labels_N,
            champion_N,
            sigmoid(np.log(champion_N / (1 - champion_N)) + 1).astype(np.float32),
        )
        for labels_N, champion_N in (draw(5000, (0.2,), seed=k) for k in range(5))
    ]
    assert refused(biased) == {
        "logloss": 1,
        "auc": 0,
    }  # ranks as well, and predicts too many clicks
