"""The figures a click model is judged by, in float64 NumPy. labels_N are 0/1, scores_N probabilities; one entry a row.

Everything that depends on order goes through `pool`: rows sorted by score and grouped, equal scores always together, so that no
figure depends on the order of the rows.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Metrics = dict[str, float | int | None]

LOGLOSS_EPS = 1e-7  # a score is taken as at least this far from 0 and 1, as in FuxiCTR: float32 cannot tell 1 - 1e-8 from 1
ECE_BINS = 20
BOOTSTRAP_BINS = 2000
INTERVAL = (2.5, 97.5)  # percentiles: a 95 % interval


class Pool(NamedTuple):
    """K groups of rows by ascending score; float64 arrays of shape (K,)."""

    rows: Array
    clicks: Array
    score: Array  # mean
    loss_click: Array  # mean of -ln(score) in the group, the loss of a clicked row
    loss_other: Array  # mean of -ln(1 - score)


def pool(labels_N: NDArray[Any], scores_N: NDArray[Any], num_groups: int | None) -> Pool:
    """Group rows by score into at most num_groups groups of equally many rows (None: one group for each distinct score)."""
    order_N = np.argsort(scores_N, kind="stable")
    sorted_N = scores_N[order_N]
    if num_groups is None or num_groups >= len(sorted_N):
        starts_K = np.flatnonzero(np.append(True, sorted_N[1:] != sorted_N[:-1]))
    else:
        cuts = np.arange(num_groups) * len(sorted_N) // num_groups
        starts_K = np.unique(np.searchsorted(sorted_N, sorted_N[cuts]))  # a cut among equal scores moves to their first
    rows_K = np.diff(np.append(starts_K, len(sorted_N))).astype(np.float64)
    scores = np.clip(sorted_N.astype(np.float64), LOGLOSS_EPS, 1 - LOGLOSS_EPS)

    def total(values_N: Array) -> Array:
        return np.asarray(np.add.reduceat(values_N, starts_K), np.float64)

    return Pool(
        rows_K,
        total(labels_N[order_N].astype(np.float64)),
        total(sorted_N.astype(np.float64)) / rows_K,
        total(-np.log(scores)) / rows_K,
        total(-np.log1p(-scores)) / rows_K,
    )


def auc(groups: Pool) -> float | None:
    """Area under the ROC curve: the chance that a clicked row scores above another, ties counting one half. None for one class."""
    num_clicks, num_others = groups.clicks.sum(), (groups.rows - groups.clicks).sum()
    if not num_clicks or not num_others:
        return None
    return float(_pairs_won(groups.clicks, groups.rows - groups.clicks) / (num_clicks * num_others))


def _pairs_won(clicks_K: Array, others_K: Array) -> Array:
    """(..., K) counts by ascending score -> (...) pairs (clicked, other) in the right order."""
    below_K = np.cumsum(others_K, axis=-1) - others_K
    return np.asarray((clicks_K * (below_K + others_K / 2)).sum(axis=-1))


def logloss(labels_N: NDArray[Any], scores_N: NDArray[Any]) -> float:
    """Mean binary cross-entropy in nats; scores are clipped to [LOGLOSS_EPS, 1 - LOGLOSS_EPS]."""
    scores = np.clip(scores_N.astype(np.float64), LOGLOSS_EPS, 1 - LOGLOSS_EPS)
    return float(-np.where(labels_N == 1, np.log(scores), np.log1p(-scores)).mean())


def entropy(rate: float) -> float:
    """Logloss, in nats, of always predicting the label rate; 0 for a rate of 0 or 1."""
    return float(-sum(p * np.log(p) for p in (rate, 1 - rate) if p > 0))


def ece(groups: Pool) -> float:
    """Expected calibration error: mean over rows of |label rate - mean score| of the row's group.

    Groups hold equally many rows (Nguyen & O'Connor 2015) and not equal widths of score: nearly all click scores are small, and
    equal widths would put them into one or two bins.
    """
    return float((np.abs(groups.clicks - groups.rows * groups.score)).sum() / groups.rows.sum())


def summary(labels_N: NDArray[Any], scores_N: NDArray[Any]) -> Metrics:
    """auc, logloss, normalized_entropy, ece, accuracy, num_rows of at least one row.

    normalized_entropy is logloss over the entropy of these rows' label rate (He et al. 2014): 1 is what a constant achieves.
    auc and normalized_entropy are None when there is one class only. Accuracy is at 0.5 (a score of just 0.5 says no click).
    """
    loss, base = logloss(labels_N, scores_N), entropy(float(labels_N.mean()))
    return {
        "auc": auc(pool(labels_N, scores_N, None)),
        "logloss": loss,
        "normalized_entropy": loss / base if base else None,
        "ece": ece(pool(labels_N, scores_N, ECE_BINS)),
        "accuracy": float(((scores_N > 0.5) == (labels_N == 1)).mean()),
        "num_rows": len(labels_N),
    }


def interval(labels_N: NDArray[Any], scores_N: NDArray[Any], num_rounds: int, seed: int) -> Metrics:
    """95 % percentile bootstrap: auc_low, auc_high, logloss_low, logloss_high (None for auc where there is one class only).

    Drawing N rows with replacement is a multinomial draw over (score, label) cells. Rows are pooled into BOOTSTRAP_BINS groups
    first, which moves the AUC by about 1 / BOOTSTRAP_BINS^2 and makes the cost independent of N.
    """
    groups = pool(labels_N, scores_N, BOOTSTRAP_BINS)
    cells_2K = np.concatenate([groups.clicks, groups.rows - groups.clicks])
    num_rows = int(cells_2K.sum())
    drawn_R2K = np.random.default_rng(seed).multinomial(num_rows, cells_2K / num_rows, size=num_rounds).astype(np.float64)
    clicks_RK, others_RK = np.split(drawn_R2K, 2, axis=1)
    logloss_R = (clicks_RK @ groups.loss_click + others_RK @ groups.loss_other) / num_rows
    pairs_R = clicks_RK.sum(axis=1) * others_RK.sum(axis=1)
    auc_R = _pairs_won(clicks_RK, others_RK)[pairs_R > 0] / pairs_R[pairs_R > 0]  # a draw of one class has none
    low, high = np.percentile(logloss_R, INTERVAL).tolist()
    auc_low, auc_high = np.percentile(auc_R, INTERVAL).tolist() if len(auc_R) else (None, None)
    return {"auc_low": auc_low, "auc_high": auc_high, "logloss_low": low, "logloss_high": high}


def roc(groups: Pool) -> tuple[Array, Array]:
    """(false positive rate, true positive rate), each (K + 1,), from (0, 0) to (1, 1), as the threshold falls; two classes needed."""
    clicks, others = np.cumsum(groups.clicks[::-1]), np.cumsum((groups.rows - groups.clicks)[::-1])
    return np.append(0.0, others / others[-1]), np.append(0.0, clicks / clicks[-1])


def gain(groups: Pool) -> tuple[Array, Array]:
    """(share of rows shown, share of clicks caught), each (K + 1,), rows taken by falling score; at least one click needed."""
    rows, clicks = np.cumsum(groups.rows[::-1]), np.cumsum(groups.clicks[::-1])
    return np.append(0.0, rows / rows[-1]), np.append(0.0, clicks / clicks[-1])
