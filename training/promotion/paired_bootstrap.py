"""The paired bootstrap: the differences of two models on the same rows, and how certain they are.

A resample draws N of the N rows with replacement. Each row is drawn with the scores of both models,
so a day that is easy or hard is so for both (Efron & Tibshirani 1993, "An Introduction to the
Bootstrap", section 16.4; for two AUCs on one sample, Robin et al. 2011, "pROC").

Memory does not grow with the rows, because they are first counted in cells. A cell is a label and,
for each model, one of NUM_BINS bins of ln(score / (1 - score)). A resample is then a multinomial
draw over the cells that have rows.

- Logloss: the difference of a row's losses has a mean and a variance in its cell. The rows that are
  drawn from a cell get the mean and a normal deviate with that variance, so the cells cost no
  precision, even if the two models differ by less than a bin.
- AUC: the rows of one bin count as ties, for both models.

Rows are drawn whatever their sample weights are. A row counts in both metrics as often as its
weight says; for the AUC, with the mean weight of its cell.

Shapes: N rows, K cells, R resamples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.auc import auc_from_counts
from training.evaluation.metrics import INTERVAL_PERCENTILES, LOGLOSS_EPS, Array

NUM_BINS = 1024
# Bins per unit of log-odds: a bin is a factor of 1.03 of the odds. The first and the last bin have
# all rows with odds beyond e^16.
BINS_PER_UNIT = 32
NUM_RESAMPLES = 1000
SEED = 1  # not a parameter: nobody should choose a decision by its seed


@dataclass(frozen=True)
class Difference:
    """A metric of the challenger minus the same metric of the champion.

    Attributes:
        value: The difference on the rows themselves.
        low: Lower end of the 95 % percentile interval.
        high: Upper end of the 95 % percentile interval.
        worse: The share of resamples in which the challenger is worse. It is a one-sided test:
            `worse >= 1 - level` says, at the significance level `level`, that it is worse.
    """

    value: float
    low: float
    high: float
    worse: float


class PairedBootstrap:
    """Collects rows in any order and any number, and then compares the two models on them."""

    def __init__(self) -> None:
        # Of each cell: the number of rows, and the sum and the sum of squares of the differences of
        # their losses (challenger minus champion), each times the weight of its row.
        self.sums_3K = np.zeros((3, 2 * NUM_BINS * NUM_BINS))
        self.weights_K: Array | None = None  # of each cell the sum of the sample weights

    def add(
        self,
        labels_N: NDArray[Any],
        champion_N: NDArray[np.float32],
        challenger_N: NDArray[np.float32],
        weights_N: NDArray[Any] | None = None,
    ) -> None:
        """Add N rows.

        Args:
            labels_N: Labels 0 or 1, (N,).
            champion_N: Scores of the champion, between 0 and 1, (N,).
            challenger_N: Scores of the challenger, between 0 and 1, (N,).
            weights_N: Sample weights, (N,); None in all calls if all are 1.
        """
        cells_N = labels_N.astype(np.int64) * NUM_BINS + _bins(champion_N)
        cells_N = cells_N * NUM_BINS + _bins(challenger_N)
        differences_N = _losses(labels_N, challenger_N) - _losses(labels_N, champion_N)
        rows_K, losses_K, squares_K = self.sums_3K
        if weights_N is not None:
            weights_N = weights_N.astype(np.float64)
            if self.weights_K is None:
                self.weights_K = np.zeros_like(rows_K)
            np.add.at(self.weights_K, cells_N, weights_N)
            differences_N = differences_N * weights_N
        np.add.at(rows_K, cells_N, 1.0)
        np.add.at(losses_K, cells_N, differences_N)
        np.add.at(squares_K, cells_N, differences_N**2)

    def differences(self) -> dict[str, Difference]:
        """Compare the models on the rows so far; there has to be at least one.

        Returns:
            The differences of `logloss` and, if the rows have both labels, of `auc`.
        """
        cells_K = np.flatnonzero(self.sums_3K[0])
        rows_K, losses_K, squares_K = self.sums_3K[:, cells_K]
        labels_K, champion_K, challenger_K = np.unravel_index(cells_K, (2, NUM_BINS, NUM_BINS))
        mean_K = losses_K / rows_K
        variance_K = np.maximum(squares_K / rows_K - mean_K**2, 0)
        num_rows = int(rows_K.sum())
        weight_K = self.weights_K[cells_K] / rows_K if self.weights_K is not None else None

        def total_weight(drawn_K: Array) -> float:
            return num_rows if weight_K is None else float(drawn_K @ weight_K) or 1.0

        def auc_difference(drawn_K: Array) -> float:
            if weight_K is not None:
                drawn_K = drawn_K * weight_K
            return _auc(labels_K, challenger_K, drawn_K) - _auc(labels_K, champion_K, drawn_K)

        random = np.random.default_rng(SEED)
        logloss_R, auc_R = np.empty((2, NUM_RESAMPLES))
        for k in range(NUM_RESAMPLES):
            drawn_K = random.multinomial(num_rows, rows_K / num_rows).astype(np.float64)
            within_cells = random.standard_normal() * np.sqrt(drawn_K @ variance_K)
            logloss_R[k] = (drawn_K @ mean_K + within_cells) / total_weight(drawn_K)
            auc_R[k] = auc_difference(drawn_K)
        differences = {
            "logloss": _difference(losses_K.sum() / total_weight(rows_K), logloss_R, logloss_R > 0)
        }
        auc_value = auc_difference(rows_K)
        if not np.isnan(auc_value):
            auc_R = auc_R[~np.isnan(auc_R)]  # a resample may have one label only
            differences["auc"] = _difference(auc_value, auc_R, auc_R < 0)
        return differences


def _difference(value: float, drawn_R: Array, worse_R: NDArray[np.bool_]) -> Difference:
    low, high = np.percentile(drawn_R, INTERVAL_PERCENTILES).tolist()
    return Difference(float(value), low, high, float(np.mean(worse_R)))


def _auc(labels_K: NDArray[np.intp], bins_K: NDArray[np.intp], rows_K: Array) -> float:
    """Return the AUC of counted rows, NaN if they have one label only."""
    counts = np.bincount(labels_K * NUM_BINS + bins_K, rows_K, 2 * NUM_BINS)
    auc = auc_from_counts(counts[:NUM_BINS], counts[NUM_BINS:])
    return np.nan if auc is None else auc


def _bins(scores_N: NDArray[np.float32]) -> NDArray[np.int64]:
    p_N = _clipped(scores_N)
    bins_N = np.rint(BINS_PER_UNIT * np.log(p_N / (1 - p_N))).astype(np.int64)
    return np.asarray(np.clip(bins_N + NUM_BINS // 2, 0, NUM_BINS - 1))


def _losses(labels_N: NDArray[Any], scores_N: NDArray[np.float32]) -> Array:
    p_N = _clipped(scores_N)
    return -np.log(np.where(labels_N == 1, p_N, 1 - p_N))


def _clipped(scores_N: NDArray[np.float32]) -> Array:
    return np.clip(scores_N.astype(np.float64), LOGLOSS_EPS, 1 - LOGLOSS_EPS)
