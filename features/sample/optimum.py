"""The best attainable metrics of a generated log: every row scored with its true probability, against the labels that were drawn."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.auc import auc_from_counts
from features.sample.values import Floats

NUM_BINS = 1 << 20


class Best:
    """Sums over rows, in bounded memory. Rows whose probabilities fall into one of 2^20 equal bins count as tied in the AUC.

    A tie is worth 1/2, so the error is below half the share of (click, no click) pairs that share a bin: about 1e-6, less in practice.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((2, NUM_BINS), np.int64)  # no click, click
        self.loss = 0.0

    def add(self, probabilities_B: Floats, labels_B: NDArray[np.bool_]) -> None:
        bins_B = (probabilities_B * NUM_BINS).astype(np.int64).clip(max=NUM_BINS - 1)
        self.counts += np.bincount(bins_B + NUM_BINS * labels_B, minlength=2 * NUM_BINS).reshape(
            2, NUM_BINS
        )
        self.loss -= float(np.log(np.where(labels_B, probabilities_B, 1 - probabilities_B)).sum())

    def merge(self, other: "Best") -> None:
        self.counts += other.counts
        self.loss += other.loss

    def metrics(self) -> dict[str, Any]:
        """auc, logloss, normalized_entropy (logloss over that of the constant label rate), label_rate, num_rows; None where undefined."""
        negatives, positives = (int(count) for count in self.counts.sum(axis=1))
        num_rows = negatives + positives
        if not num_rows:
            return {
                "num_rows": 0,
                "label_rate": None,
                "auc": None,
                "logloss": None,
                "normalized_entropy": None,
            }
        rate, logloss = positives / num_rows, self.loss / num_rows
        values: dict[str, Any] = {
            "num_rows": num_rows,
            "label_rate": rate,
            "logloss": logloss,
            "auc": None,
            "normalized_entropy": None,
        }
        if negatives and positives:
            values["auc"] = auc_from_counts(self.counts[0], self.counts[1])
            values["normalized_entropy"] = -logloss / float(
                rate * np.log(rate) + (1 - rate) * np.log1p(-rate)
            )
        return values
