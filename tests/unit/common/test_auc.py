"""The AUC from counts agrees with its definition, for integers, floats and several samples."""

import numpy as np
import pytest

from common.auc import auc_from_counts, half_pairs_won


def test_auc_agrees_with_its_definition() -> None:
    for seed in range(100):
        random = np.random.default_rng(seed)
        labels, scores = random.integers(0, 2, 9), random.integers(0, 4, 9)
        pairs = [
            1.0 if positive > negative else 0.5 if positive == negative else 0.0
            for positive in scores[labels == 1]
            for negative in scores[labels == 0]
        ]
        negatives, positives = (
            np.bincount(scores[labels == label], minlength=4) for label in (0, 1)
        )
        expected = pytest.approx(np.mean(pairs)) if pairs else None
        assert auc_from_counts(negatives, positives) == expected
        assert auc_from_counts(negatives.astype(float), positives.astype(float)) == expected


def test_pairs_of_integers_are_exact_integers() -> None:
    negatives, positives = np.array([2**30, 1]), np.array([1, 2**30])
    assert half_pairs_won(negatives, positives) == 2**30 + 2**30 * (2**31 + 1)


def test_samples_are_on_the_leading_axes() -> None:
    random = np.random.default_rng(0)
    negatives, positives = random.integers(0, 9, (2, 3, 5))
    assert half_pairs_won(negatives, positives).tolist() == [
        half_pairs_won(*sample) for sample in zip(negatives, positives, strict=True)
    ]
