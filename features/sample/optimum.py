"""The best possible metrics of a sample log: those of the true click probabilities as scores."""

from typing import Any

import numpy as np

from common.auc import auc_from_counts
from features.sample.values import Bools, Floats

NUM_BINS = 1 << 20


class OptimumMetrics:
    """Sums over rows from which the metrics of their true probabilities are computed.

    For the AUC, rows are counted in 2^20 equal bins of probability, and rows in the same bin are
    ties. A tie is worth 1/2, so the error is below half the share of (click, no click) pairs in the
    same bin: about 1e-6, and less in practice.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((2, NUM_BINS), np.int64)  # of rows without click, with click
        self.loss = 0.0

    def add(self, probabilities_B: Floats, labels_B: Bools) -> None:
        """Add rows with their true click probabilities and the labels drawn from them."""
        bins_B = (probabilities_B * NUM_BINS).astype(np.int64).clip(max=NUM_BINS - 1)
        counts = np.bincount(bins_B + NUM_BINS * labels_B, minlength=2 * NUM_BINS)
        self.counts += counts.reshape(2, NUM_BINS)
        self.loss -= float(np.log(np.where(labels_B, probabilities_B, 1 - probabilities_B)).sum())

    def merge(self, other: "OptimumMetrics") -> None:
        """Add the rows of another object."""
        self.counts += other.counts
        self.loss += other.loss

    def metrics(self) -> dict[str, Any]:
        """Compute the metrics; those that are not defined for the rows are None.

        Returns:
            `num_rows`, `label_rate`, `auc`, `logloss`, and `normalized_entropy`: the logloss
            divided by that of the label rate as a constant prediction.
        """
        num_negatives, num_positives = (int(count) for count in self.counts.sum(axis=1))
        num_rows = num_negatives + num_positives
        values: dict[str, Any] = {
            "num_rows": num_rows,
            "label_rate": None,
            "auc": None,
            "logloss": None,
            "normalized_entropy": None,
        }
        if num_rows:
            rate, logloss = num_positives / num_rows, self.loss / num_rows
            values |= {"label_rate": rate, "logloss": logloss}
            if num_negatives and num_positives:
                constant_logloss = -float(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
                values["auc"] = auc_from_counts(self.counts[0], self.counts[1])
                values["normalized_entropy"] = logloss / constant_logloss
        return values
