"""LightGBM on raw numbers, and for each category the smoothed click rate and the count of its value among the training rows.

A training row's rate leaves its own fold out (10 folds), or the trees would learn labels by heart; so does its count leave out the row
itself. Rates are S + prior * mean over n + prior. Early stopping and the choice among SETTINGS are by validation logloss.
"""

from typing import Any

import lightgbm
import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from features.schema.schema import Schema

FOLDS = 10
PATIENCE = 50  # trees without a gain
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
    """rows: raw typed columns of train, valid and test. Which of SETTINGS has the lowest validation logloss."""
    labels = rows[1][schema.label].to_numpy()
    return int(
        np.argmin(
            [log_loss(labels, scores(rows, schema, k, 1, threads)[0]) for k in range(len(SETTINGS))]
        )
    )


def scores(
    rows: list[pl.DataFrame], schema: Schema, setting: int, seed: int, threads: int
) -> tuple[Floats, Floats]:
    """Click probabilities of the validation and of the test rows."""
    prior, params = SETTINGS[setting]
    X, labels = _inputs(rows, schema, prior, seed), [part[schema.label].to_numpy() for part in rows]
    booster = lightgbm.train(
        {**FIXED, **params, "seed": seed, "num_threads": threads},
        lightgbm.Dataset(X[0], labels[0]),
        num_boost_round=3000,
        valid_sets=[lightgbm.Dataset(X[1], labels[1])],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    return booster.predict(X[1]), booster.predict(X[2])


def _inputs(rows: list[pl.DataFrame], schema: Schema, prior: float, seed: int) -> list[Floats]:
    """(rows, N + 2 F) for each of the three parts."""
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
    """Of every row; codes are the values of all rows, labels and folds those of the training rows, which come first."""
    num_train, num_values = len(labels), int(codes.max()) + 1
    of_train = codes[:num_train]
    clicks, rows = (
        np.bincount(of_train, labels, num_values),
        np.bincount(of_train, minlength=num_values),
    )
    cells = folds * num_values + of_train
    fold_clicks = np.bincount(cells, labels, FOLDS * num_values)
    fold_rows = np.bincount(cells, minlength=FOLDS * num_values)
    seen_clicks, seen_rows, count = (
        clicks[codes],
        rows[codes].astype(np.float64),
        rows[codes].astype(np.float64),
    )
    seen_clicks[:num_train] -= fold_clicks[cells]
    seen_rows[:num_train] -= fold_rows[cells]
    count[:num_train] -= 1
    return [(seen_clicks + prior * labels.mean()) / (seen_rows + prior), count]
