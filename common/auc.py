"""The area under the ROC curve (AUC), from counts of negatives and positives per score.

The AUC is the probability that a positive row has a higher score than a negative row; a tie counts
one half (Hanley & McNeil 1982, "The Meaning and Use of the Area under a ROC Curve"). Rows with the
same score, or in the same bin of scores, are ties, so the counts per score are all that it needs.

Shapes: K distinct scores or bins of scores, in ascending order, on the last axis.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def half_pairs_won(negatives_K: NDArray[Any], positives_K: NDArray[Any]) -> Any:
    """Count the pairs of a positive and a negative row that the scores put in the right order.

    Args:
        negatives_K: Number of negative rows per score, (..., K), integers or floats.
        positives_K: Number of positive rows per score, of the same shape.

    Returns:
        A pair in the right order counts 2 and a tie counts 1, so that integers stay integers.
        The shape is that of the arguments without the last axis.
    """
    return (positives_K * (2 * np.cumsum(negatives_K, axis=-1) - negatives_K)).sum(axis=-1)


def auc_from_counts(negatives_K: NDArray[Any], positives_K: NDArray[Any]) -> float | None:
    """Compute the AUC of rows that are counted per score.

    Args:
        negatives_K: Number of negative rows per score, (K,), integers or floats.
        positives_K: Number of positive rows per score, (K,), integers or floats.

    Returns:
        The AUC, or None if there is no negative or no positive row.
    """
    negatives_K, positives_K = (
        np.asarray(counts_K, np.float64) for counts_K in (negatives_K, positives_K)
    )
    num_pairs = negatives_K.sum() * positives_K.sum()
    if num_pairs == 0:
        return None
    return float(half_pairs_won(negatives_K, positives_K) / (2 * num_pairs))
