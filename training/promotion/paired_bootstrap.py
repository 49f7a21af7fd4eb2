"""Two models on the same rows: how far apart they are and how sure that is, by a paired bootstrap. Memory does not grow with the rows.

A resample draws N of the N rows with replacement, each with both of its scores, so that what makes a day easy or hard makes it so for both
(Efron & Tibshirani 1993, 16.4; for two AUC on one sample, Robin et al. 2011). Rows are pooled into cells first: the label and, for each
model, one of NUM_BINS steps of ln(score / (1 - score)). A resample is then a multinomial draw over the cells that have rows. Of a cell's
differences of losses the mean and the variance are kept, and rows drawn from it add a normal deviate of just these: the logloss loses
nothing by the cells, even of two models that agree to a hundredth of a step. In the AUC rows of one step count as ties, for both models.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import INTERVAL, LOGLOSS_EPS, Array

NUM_BINS = 1024
STEPS_PER_UNIT = (
    32  # a step is a factor of 1.03 of the odds; the outer ones hold all beyond odds of e^16
)
NUM_ROUNDS = 1000
SEED = 1  # not a parameter: a decision must not be shopped for


@dataclass(frozen=True)
class Difference:
    """Challenger less champion. low, high: the 95 % percentile interval; worse: the share of resamples in which the challenger is worse.

    A level of that share is that of a one-sided test: worse >= 1 - level says that the challenger is.
    """

    value: float
    low: float
    high: float
    worse: float


class Paired:
    """Rows are added in any order, and as many as there are."""

    def __init__(self) -> None:
        # of each cell: rows, and of their losses' differences (the challenger's less the champion's) the sum and the sum of squares
        self.sums_3K = np.zeros((3, 2 * NUM_BINS * NUM_BINS))

    def add(
        self,
        labels_N: NDArray[Any],
        champion_N: NDArray[np.float32],
        challenger_N: NDArray[np.float32],
    ) -> None:
        """Labels 0/1 and float32 scores of 0 .. 1."""
        cells_N = (labels_N.astype(np.int64) * NUM_BINS + _steps(champion_N)) * NUM_BINS + _steps(
            challenger_N
        )
        differences_N = _losses(labels_N, challenger_N) - _losses(labels_N, champion_N)
        for sums_K, weights_N in zip(
            self.sums_3K, (np.ones(len(cells_N)), differences_N, differences_N**2), strict=True
        ):
            np.add.at(sums_K, cells_N, weights_N)

    def differences(self) -> dict[str, Difference]:
        """logloss and, where the rows have both labels, auc. There has to be a row."""
        cells_K = np.flatnonzero(self.sums_3K[0])
        rows_K, losses_K, squares_K = self.sums_3K[:, cells_K]
        labels_K, champion_K, challenger_K = np.unravel_index(cells_K, (2, NUM_BINS, NUM_BINS))
        mean_K = losses_K / rows_K
        variance_K = np.maximum(squares_K / rows_K - mean_K**2, 0)
        num_rows = int(rows_K.sum())

        def auc(drawn_K: Array) -> float:
            ours, theirs = (
                _auc(labels_K, steps_K, drawn_K) for steps_K in (challenger_K, champion_K)
            )
            return ours - theirs

        random = np.random.default_rng(SEED)
        loss_R, auc_R = np.empty((2, NUM_ROUNDS))
        for k in range(NUM_ROUNDS):
            drawn_K = random.multinomial(num_rows, rows_K / num_rows).astype(np.float64)
            within_cells = random.standard_normal() * np.sqrt(drawn_K @ variance_K)
            loss_R[k], auc_R[k] = (drawn_K @ mean_K + within_cells) / num_rows, auc(drawn_K)
        found = {"logloss": _difference(float(losses_K.sum()) / num_rows, loss_R, worse_is=1)}
        if not np.isnan(value := auc(rows_K)):
            found["auc"] = _difference(
                value, auc_R[~np.isnan(auc_R)], worse_is=-1
            )  # a draw may have one label only
        return found


def _difference(value: float, drawn_R: Array, worse_is: int) -> Difference:
    low, high = np.percentile(drawn_R, INTERVAL).tolist()
    return Difference(value, low, high, float(np.mean(worse_is * drawn_R > 0)))


def _auc(labels_K: NDArray[np.intp], steps_K: NDArray[np.intp], rows_K: Array) -> float:
    """Of rows in steps by ascending score; NaN where one label has none."""
    others, clicks = np.bincount(labels_K * NUM_BINS + steps_K, rows_K, 2 * NUM_BINS).reshape(
        2, NUM_BINS
    )
    pairs = clicks.sum() * others.sum()
    return float(clicks @ (np.cumsum(others) - others / 2) / pairs) if pairs else np.nan


def _steps(scores_N: NDArray[np.float32]) -> NDArray[np.int64]:
    p_N = _clipped(scores_N)
    steps_N = np.rint(STEPS_PER_UNIT * np.log(p_N / (1 - p_N))).astype(np.int64)
    return np.asarray(np.clip(steps_N + NUM_BINS // 2, 0, NUM_BINS - 1))


def _losses(labels_N: NDArray[Any], scores_N: NDArray[np.float32]) -> Array:
    p_N = _clipped(scores_N)
    return -np.log(np.where(labels_N == 1, p_N, 1 - p_N))


def _clipped(scores_N: NDArray[np.float32]) -> Array:
    return np.clip(scores_N.astype(np.float64), LOGLOSS_EPS, 1 - LOGLOSS_EPS)
