"""LightGBM on raw numbers, and on the click rate and count of each categorical value.

Rates and counts are those of the training rows. The rate of a training row leaves out its own fold
of 10, because otherwise the trees would learn labels by heart; its count leaves out the row itself.
A value with S clicks in n rows has the rate (S + prior * mean) / (n + prior). Validation logloss
decides the number of trees and the choice among SETTINGS.
"""

from typing import Any

import lightgbm
import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from features.schema.schema import Schema

FOLDS = 10
PATIENCE = 50  # trees that do not improve the validation logloss
FIXED = {
    "objective": "binary",
    "learning_rate": 0.03,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "verbose": -1,
}
SETTINGS = [
    (prior, {"num_leaves": leaves, "min_child_samples": 100, "feature_fraction": share})
    for prior, leaves, share in ((10, 31, 0.5), (50, 31, 0.5), (50, 63, 0.3), (20, 15, 0.3))
]

Floats = NDArray[np.float64]


def choose(rows: list[pl.DataFrame], schema: Schema, threads: int) -> int:
    """Return the index of the setting with the lowest validation logloss.

    Args:
        rows: The typed columns of train, valid and test.
        schema: The schema of the log.
        threads: CPU threads.
    """
    labels = rows[1][schema.label].to_numpy()
    losses = [
        log_loss(labels, scores(rows, schema, setting, 1, threads)[0])
        for setting in range(len(SETTINGS))
    ]
    return int(np.argmin(losses))


def scores(
    rows: list[pl.DataFrame], schema: Schema, setting: int, seed: int, threads: int
) -> tuple[Floats, Floats]:
    """Return the click probabilities of the validation and of the test rows."""
    prior, params = SETTINGS[setting]
    X = _inputs(rows, schema, prior, seed)
    labels = [part[schema.label].to_numpy() for part in rows]
    booster = lightgbm.train(
        {**FIXED, **params, "seed": seed, "num_threads": threads},
        lightgbm.Dataset(X[0], labels[0]),
        num_boost_round=3000,
        valid_sets=[lightgbm.Dataset(X[1], labels[1])],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    return booster.predict(X[1]), booster.predict(X[2])


def _inputs(rows: list[pl.DataFrame], schema: Schema, prior: float, seed: int) -> list[Floats]:
    """Return the inputs of the three splits, each (rows, N + 2 F)."""
    all_rows = pl.concat(rows)
    num_train = rows[0].height
    labels = rows[0][schema.label].to_numpy().astype(np.float64)
    folds = np.random.default_rng(seed).integers(0, FOLDS, num_train)
    columns = [all_rows[name].cast(pl.Float64).to_numpy() for name in schema.dense]
    for name in schema.categorical:
        codes = all_rows[name].rank("dense").fill_null(0).to_numpy()
        columns += _rate_and_count(codes, labels, folds, prior)
    X = np.stack(columns, axis=1)
    return np.split(X, np.cumsum([part.height for part in rows])[:-1])


def _rate_and_count(
    codes: NDArray[Any], labels: Floats, folds: NDArray[Any], prior: float
) -> list[Floats]:
    """Return the rate and the count of every row.

    Args:
        codes: The values of all rows; the training rows come first.
        labels: The labels of the training rows.
        folds: The folds of the training rows.
        prior: Weight of the mean click rate.
    """
    num_train, num_values = len(labels), int(codes.max()) + 1
    of_train = codes[:num_train]
    clicks = np.bincount(of_train, labels, num_values)
    rows = np.bincount(of_train, minlength=num_values)
    cells = folds * num_values + of_train
    fold_clicks = np.bincount(cells, labels, FOLDS * num_values)
    fold_rows = np.bincount(cells, minlength=FOLDS * num_values)
    seen_clicks = clicks[codes]
    seen_rows = rows[codes].astype(np.float64)
    count = seen_rows.copy()
    seen_clicks[:num_train] -= fold_clicks[cells]
    seen_rows[:num_train] -= fold_rows[cells]
    count[:num_train] -= 1
    return [(seen_clicks + prior * labels.mean()) / (seen_rows + prior), count]
