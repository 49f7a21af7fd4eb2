"""One-hot logistic regression (scikit-learn) on the features of the DLRM."""

from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from training.loop.batches import Rows

INVERSE_PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0)  # C of scikit-learn, 1 / L2 penalty


def scores(
    train: Rows, valid: Rows, test: Rows, cardinalities: list[int]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the click probabilities of valid and test; validation logloss chooses C."""
    scaler = StandardScaler().fit(train.dense.numpy())
    X = [
        hstack(
            [csr_matrix(scaler.transform(rows.dense.numpy())), _one_hot(rows, cardinalities)],
            format="csr",
        )
        for rows in (train, valid, test)
    ]
    best_loss, best_scores = np.inf, None
    for C in INVERSE_PENALTIES:
        model = LogisticRegression(C=C, max_iter=300).fit(X[0], train.labels.numpy())
        valid_scores = model.predict_proba(X[1])[:, 1]
        loss = log_loss(valid.labels.numpy(), valid_scores)
        if loss < best_loss:
            best_loss, best_scores = loss, (valid_scores, model.predict_proba(X[2])[:, 1])
    assert best_scores is not None
    return best_scores


def _one_hot(rows: Rows, cardinalities: list[int]) -> csr_matrix:
    starts_F = np.array([0, *accumulate(cardinalities)])
    R, F = rows.ids.shape
    columns = (rows.ids.numpy() + starts_F[:-1]).ravel()
    return csr_matrix(
        (np.ones(R * F), columns, np.arange(0, R * F + 1, F)), shape=(R, int(starts_F[-1]))
    )
