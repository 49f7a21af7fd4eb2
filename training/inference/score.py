"""The one way to a score, for evaluation and serving alike."""

from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from training.inference.bundle import Bundle

BATCH_ROWS = 8192  # every forward pass has just so many rows, the last one padded


def score(bundle: Bundle, frame: pl.DataFrame) -> NDArray[np.float32]:
    """Click probabilities (N,) float32 of transformed rows, in their order, on the CPU.

    Matrix products of different heights may add up in a different order. At one fixed height a row's score depends on the row
    alone, not on its neighbours, its place or the number of rows (tests/unit/test_score.py): evaluation and predict agree bit for
    bit on one machine. MKL breaks this only for layers of 2 to 8 outputs whose number of inputs is no multiple of 4: there it
    adds by memory alignment, and a row's last bit may follow its place.
    """
    dense_NN = _matrix(frame, bundle.state.schema.dense_features, np.float32)
    ids_NF = _matrix(frame, bundle.state.schema.categorical_features, np.int32)
    scores_N = np.empty(frame.height, np.float32)
    with torch.inference_mode():
        for start in range(0, frame.height, BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            logits_B = bundle.model(_padded(dense_NN[part]), _padded(ids_NF[part]))
            scores_N[part] = torch.sigmoid(logits_B).numpy()[: len(scores_N[part])]
    return scores_N


def _matrix(frame: pl.DataFrame, names: list[str], dtype: type[np.generic]) -> NDArray[Any]:
    return frame.select(names).to_numpy(order="c").astype(dtype, copy=False)


def _padded(rows: NDArray[Any]) -> torch.Tensor:
    batch = np.zeros((BATCH_ROWS, rows.shape[1]), rows.dtype)
    batch[: len(rows)] = rows
    return torch.from_numpy(batch)
