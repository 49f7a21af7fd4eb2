"""The rise of the logloss when a column's values move to other rows, by whole forward passes."""

import numpy as np
import torch

from features.schema.schema import Schema
from training.loop.batches import Rows
from training.models.dlrm import DLRM


def brute_force(model: DLRM, rows: Rows, schema: Schema, columns: list[str]) -> tuple[float, float]:
    """Return the mean rise and its standard error if each row gets the next row's values.

    Args:
        model: The model.
        rows: The rows; the last one gets the values of the first.
        schema: The columns of the rows.
        columns: The dense or categorical features that are permuted together.
    """
    following = torch.arange(len(rows.labels)).roll(1)
    dense, ids, bags = rows.dense.clone(), rows.ids.clone(), list(rows.bags)
    lists = [feature.name for feature in schema.list_features]
    for column in columns:
        if column in schema.dense_features:
            k = schema.dense_features.index(column)
            dense[:, k] = dense[following, k]
        elif column in lists:
            k = lists.index(column)
            bags[k] = bags[k].take(following)
        else:
            k = schema.single_valued_features.index(column)
            ids[:, k] = ids[following, k]
    before = losses(model, rows)
    differences = losses(model, rows._replace(dense=dense, ids=ids, bags=tuple(bags))) - before
    weights = np.ones(len(before)) if rows.weights is None else rows.weights.numpy().astype(float)
    mean = np.average(differences, weights=weights)
    error = np.sqrt((weights**2 * (differences - mean) ** 2).sum()) / weights.sum()
    return float(mean), float(error)


def losses(model: DLRM, rows: Rows) -> np.ndarray:
    """Return the logloss of each row."""
    with torch.no_grad():
        p = torch.sigmoid(model(rows.dense, rows.ids, rows.bags)).numpy().astype(float)
    return -np.log(np.where(rows.labels.numpy() == 1, p, 1 - p))
