"""One-hot logistic regression on the ids and numbers that ours is trained on."""

from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from training.loop.batches import Rows

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)  # C: the inverse of the L2 penalty


def scores(
    train: Rows, valid: Rows, test: Rows, cardinalities: list[int]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Click probabilities of valid and test, by the C whose validation logloss is lowest."""
    scaler = StandardScaler().fit(train.dense.numpy())
    X = [
        hstack(
            [csr_matrix(scaler.transform(rows.dense.numpy())), _one_hot(rows, cardinalities)],
            format="csr",
        )
        for rows in (train, valid, test)
    ]
    best, found = np.inf, None
    for C in STRENGTHS:
        model = LogisticRegression(C=C, max_iter=300).fit(X[0], train.labels.numpy())
        of_valid = model.predict_proba(X[1])[:, 1]
        if (loss := log_loss(valid.labels.numpy(), of_valid)) < best:
            best, found = loss, (of_valid, model.predict_proba(X[2])[:, 1])
    assert found is not None
    return found


def _one_hot(rows: Rows, cardinalities: list[int]) -> csr_matrix:
    starts_F = np.array([0, *accumulate(cardinalities)])
    R, F = rows.ids.shape
    columns = (rows.ids.numpy() + starts_F[:-1]).ravel()
    return csr_matrix(
        (np.ones(R * F), columns, np.arange(0, R * F + 1, F)), shape=(R, int(starts_F[-1]))
    )
