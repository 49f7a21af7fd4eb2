"""The comparison of an exported model with PyTorch, without which no export is written.

Shapes: R rows, N dense features, F categorical features.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from common.config.loading import ConfigError
from common.config.params import Export
from serving.serving_bundle import Logloss, Parity
from training.export.test_rows import TestRows
from training.inference.score import BATCH_ROWS

# The largest difference between two scores of a row. Sums of float32 numbers in another order make
# one of about 2e-7.
MAX_DIFFERENCE = 1e-6
# The first rows are scored in batches of these sizes too.
NUM_IN_SMALL_BATCHES = 1024
SMALL_BATCHES = (1, 3, 17)

# Scores rows: (B, N) float32 and (B, F) int32 -> (B,) float32.
Score = Callable[[NDArray[np.float32], NDArray[np.int32]], NDArray[np.float32]]


class ExportError(ConfigError):
    """The exported model is not good enough. The message has the figures and the remedy."""


def runtime_scores(
    score: Score, rows: TestRows, batch_rows: int = BATCH_ROWS, num_rows: int | None = None
) -> NDArray[np.float32]:
    """Score the first rows, or all, in batches, (R,)."""
    num_rows = num_rows or len(rows.labels)
    starts = range(0, num_rows, batch_rows)
    parts = [slice(start, min(start + batch_rows, num_rows)) for start in starts]
    return np.concatenate([score(rows.dense[part], rows.ids[part]) for part in parts])


def check_parity(
    expected_R: NDArray[np.float32], scores_R: NDArray[np.float32], model: str
) -> Parity:
    """Compare the scores of an exported model with those of PyTorch.

    Args:
        expected_R: The scores of PyTorch, which computes the same formats.
        scores_R: Those of the exported model.
        model: The model, for the error.

    Raises:
        ExportError: A difference is above MAX_DIFFERENCE.
    """
    difference_R = np.abs(scores_R.astype(np.float64) - expected_R)
    row = int(np.argmax(np.nan_to_num(difference_R, nan=np.inf)))
    if not difference_R[row] <= MAX_DIFFERENCE:
        raise ExportError(
            f"{model}: test row {row} has the score {scores_R[row]:.9g} in the exported model and"
            f" {expected_R[row]:.9g} in PyTorch, and at most {MAX_DIFFERENCE:g} of difference is"
            " accepted; report this as a fault of clickmill, with params.yaml, and serve the"
            " bundle itself by `clickmill predict` meanwhile"
        )
    return Parity(rows=len(scores_R), max_difference=float(difference_R[row]))


def check_batches(
    score: Score,
    rows: TestRows,
    scores_R: NDArray[np.float32],
    model: str,
    tolerance: float = 0,
) -> None:
    """Check that the score of a row does not depend on the other rows of its batch.

    Args:
        score: Computes the scores of the exported model.
        rows: The rows.
        scores_R: Their scores in large batches.
        model: The model, for the error.
        tolerance: The difference that is accepted; 0 means the same bits.

    Raises:
        ExportError: A score differs by more in a small batch.
    """
    num_rows = min(NUM_IN_SMALL_BATCHES, len(scores_R))
    for batch_rows in SMALL_BATCHES:
        small_R = runtime_scores(score, rows, batch_rows, num_rows)
        difference_R = np.abs(small_R.astype(np.float64) - scores_R[:num_rows])
        (different,) = np.nonzero(~(difference_R <= tolerance))
        if len(different):
            row = int(different[0])
            raise ExportError(
                f"{model}: test row {row} has the score {small_R[row]:.9g} in a batch of"
                f" {batch_rows} and {scores_R[row]:.9g} in a batch of {BATCH_ROWS:,}; a served"
                " score must not depend on its neighbours. Report this as a fault of clickmill,"
                " with params.yaml and the CPU's name"
            )


def check_logloss(logloss: Logloss, params: Export, model: str) -> None:
    """Check that the formats of the numbers do not cost too much.

    Args:
        logloss: The logloss of the test rows, before and after.
        params: The formats and the limit.
        model: The model, for the error.

    Raises:
        ExportError: They raise the logloss by more than `max_logloss_loss`.
    """
    loss = logloss.exported - logloss.trained
    if loss > params.max_logloss_loss:
        raise ExportError(
            f"{model}: with tables in {params.tables} and linear layers in {params.mlps} the"
            f" logloss of the test rows is {logloss.exported:.6f} instead of"
            f" {logloss.trained:.6f}, {loss:.6f} more, and export.max_logloss_loss accepts"
            f" {params.max_logloss_loss:g}; in params.yaml, choose a format of more bits or accept"
            " more"
        )
