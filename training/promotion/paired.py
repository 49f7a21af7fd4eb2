"""Two models on the same rows: how far apart they are and how sure that is, by a paired bootstrap. Memory does not grow with the rows.

A resample draws N of the N rows with replacement, each with both of its scores, so that what makes a day easy or hard makes it so for both
(Efron & Tibshirani 1993, 16.4; for two AUC on one sample, Robin et al. 2011). Rows are pooled into cells first: the label and, for each
model, one of NUM_BINS steps of ln(score / (1 - score)). A resample is then a multinomial draw over the cells that have rows. A cell's
difference of losses is its rows' own mean, so the logloss loses nothing by it, and rows of one step count as ties in the AUC.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import LOGLOSS_EPS, Array

NUM_BINS = 1024
STEPS_PER_UNIT = 32  # a step is a factor of 1.03 of the odds; the outer ones hold all beyond odds of e^16
NUM_ROUNDS = 1000
SEED = 1  # not a parameter: a decision must not be shopped for


class Difference(NamedTuple):
    """Challenger less champion. low, high: the 95 % percentile interval; worse: the share of resamples in which the challenger is worse.

    A level of that share is that of a one-sided test: worse >= 1 - level says that the challenger is.
    """

    value: float
    low: float
    high: float
    worse: float


class Paired:
    """Rows are added in any order."""

    def __init__(self) -> None:
        self.rows = np.zeros((2, NUM_BINS, NUM_BINS))  # by label, champion's and challenger's step
        self.loss = np.zeros_like(self.rows)  # sum of the challenger's losses less the champion's

    def add(self, labels_N: NDArray[Any], champion_N: NDArray[np.float32], challenger_N: NDArray[np.float32]) -> None:
        """Labels 0/1 and float32 scores of 0 .. 1."""
        cells_N = (labels_N.astype(np.int64) * NUM_BINS + _steps(champion_N)) * NUM_BINS + _steps(challenger_N)
        differences_N = _losses(labels_N, challenger_N) - _losses(labels_N, champion_N)
        self.rows += np.bincount(cells_N, minlength=self.rows.size).reshape(self.rows.shape)
        self.loss += np.bincount(cells_N, differences_N, minlength=self.loss.size).reshape(self.loss.shape)

    def differences(self) -> dict[str, Difference]:
        """logloss and, where the rows have both labels, auc."""
        labels_K, champion_K, challenger_K = np.nonzero(self.rows)
        rows_K = self.rows[labels_K, champion_K, challenger_K]
        loss_K = self.loss[labels_K, champion_K, challenger_K] / rows_K
        num_rows = int(rows_K.sum())

        def figures(drawn_K: Array) -> tuple[float, float | None]:
            of_both = [_auc(labels_K, steps_K, drawn_K) for steps_K in (challenger_K, champion_K)]
            return float(drawn_K @ loss_K) / num_rows, None if None in of_both else of_both[0] - of_both[1]  # type: ignore[operator]

        random = np.random.default_rng(SEED)
        drawn = [figures(random.multinomial(num_rows, rows_K / num_rows).astype(np.float64)) for _ in range(NUM_ROUNDS)]
        loss, auc = figures(rows_K)
        found = {"logloss": _difference(loss, np.array([one for one, _ in drawn]), worse_is=1)}
        if auc is not None:
            found["auc"] = _difference(auc, np.array([one for _, one in drawn if one is not None]), worse_is=-1)
        return found


def _difference(value: float, drawn_R: Array, worse_is: int) -> Difference:
    low, high = np.percentile(drawn_R, (2.5, 97.5)).tolist()
    return Difference(value, low, high, float(np.mean(worse_is * drawn_R > 0)))


def _auc(labels_K: NDArray[np.int64], steps_K: NDArray[np.int64], rows_K: Array) -> float | None:
    """Of rows in steps by ascending score; None where one label has none."""
    others, clicks = np.bincount(labels_K * NUM_BINS + steps_K, rows_K, 2 * NUM_BINS).reshape(2, NUM_BINS)
    pairs = clicks.sum() * others.sum()
    return float(clicks @ (np.cumsum(others) - others / 2) / pairs) if pairs else None


def _steps(scores_N: NDArray[np.float32]) -> NDArray[np.int64]:
    p_N = np.clip(scores_N.astype(np.float64), LOGLOSS_EPS, 1 - LOGLOSS_EPS)
    steps_N = np.rint(STEPS_PER_UNIT * np.log(p_N / (1 - p_N))).astype(np.int64)
    return np.asarray(np.clip(steps_N + NUM_BINS // 2, 0, NUM_BINS - 1))


def _losses(labels_N: NDArray[Any], scores_N: NDArray[np.float32]) -> Array:
    p_N = np.clip(scores_N.astype(np.float64), LOGLOSS_EPS, 1 - LOGLOSS_EPS)
    return -np.log(np.where(labels_N == 1, p_N, 1 - p_N))
