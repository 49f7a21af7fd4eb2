"""The scores of encoded rows. Evaluation and serving both use this one function."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from common.files import DataError
from features.encode.matrices import dense_matrix, id_matrix
from features.list_values import lengths_of, values_of
from features.schema.schema import Feature
from training.inference.bundle import Bundle
from training.models.bags import Bag, starts_of

BATCH_ROWS = 8192  # rows of every forward pass; the last one is padded


def score(
    bundle: Bundle, rows: pl.DataFrame, name_row: Callable[[int], str] = "row {} of the rows".format
) -> NDArray[np.float32]:
    """Compute click probabilities on the CPU.

    Matrix products of different heights may add up in different orders. All forward passes have the
    same height, so the score of a row depends on the row alone, and not on its neighbours, its
    position or the number of rows (tests/unit/training/inference/test_score.py). Evaluation and
    predict therefore agree bit for bit on one machine. There is one exception in MKL: layers with 2
    to 8 outputs and a number of inputs that is not a multiple of 4. There it adds in an order that
    depends on memory alignment, and the last bit of a score may depend on the row's position.

    Args:
        bundle: The model.
        rows: N encoded rows, with the features of the bundle's schema as columns.
        name_row: Says in the error which row of which file the row of a number, from 0, is.

    Returns:
        Click probabilities, float32 (N,), in the order of the rows.

    Raises:
        DataError: The model's output for a row is NaN or infinite, and so no probability.
    """
    schema = bundle.state.schema
    dense_NN = dense_matrix(rows, schema)
    ids_NF = id_matrix(rows, schema)
    bags = [_bag(rows, feature) for feature in schema.list_features]
    scores_N = np.empty(rows.height, np.float32)
    with torch.inference_mode():
        for start in range(0, rows.height, BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            bags_of_part = [_padded_bag(bag, part, rows.height) for bag in bags]
            logits_B = bundle.model(_padded(dense_NN[part]), _padded(ids_NF[part]), bags_of_part)
            num_rows = len(scores_N[part])
            _check_finite(logits_B[:num_rows], start, bundle, name_row)
            scores_N[part] = torch.sigmoid(logits_B).numpy()[:num_rows]
    return scores_N


def _check_finite(
    logits_B: torch.Tensor, start: int, bundle: Bundle, name_row: Callable[[int], str]
) -> None:
    """Check the logits of the rows from `start` on.

    The sigmoid of an infinite one is 0 or 1, a score that looks right.
    """
    is_finite_B = logits_B.isfinite()
    if not is_finite_B.all():
        k = int(is_finite_B.long().argmin())
        raise DataError(
            f"{name_row(start + k)}: model {bundle.version} computes {logits_B[k].item()}, which"
            " gives no score; check the row's dense values, or train the model again"
        )


def _bag(rows: pl.DataFrame, feature: Feature) -> Bag:
    """Return the lists of a feature, and their weights if it has some."""
    assert feature.list is not None
    weights = feature.list.weights
    return Bag(
        _values(rows[feature.name], np.int32),
        starts_of(torch.from_numpy(lengths_of(rows[feature.name]))),
        None if weights is None else _values(rows[weights], np.float32),
    )


def _values(lists: pl.Series, dtype: type[np.generic]) -> torch.Tensor:
    return torch.from_numpy(values_of(lists).to_numpy().astype(dtype, copy=True))


def _padded_bag(bag: Bag, part: slice, num_rows: int) -> Bag:
    """Return the lists of a part of the rows, followed by empty ones."""
    lists = bag.part(part.start, min(part.stop, num_rows))
    ends = lists.starts[-1:].expand(BATCH_ROWS - lists.num_rows)
    return lists._replace(starts=torch.cat([lists.starts, ends]))


def _padded(values: NDArray[Any]) -> torch.Tensor:
    batch = np.zeros((BATCH_ROWS, values.shape[1]), values.dtype)
    batch[: len(values)] = values
    return torch.from_numpy(batch)
