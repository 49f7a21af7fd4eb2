"""The test rows on which an export is compared with the model that was trained.

Shapes: R rows, N dense features, F categorical features.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.artifact import Artifact
from common.files import DataError
from features.encode.matrices import dense_matrix, id_matrix
from features.schema.schema import Schema
from training.evaluation.metrics import Metrics, metrics_of_rows
from training.evaluation.row_groups import read_row_groups
from training.evaluation.sample_weights import no_row_counts

SPLIT = "test"
MAX_ROWS = 200_000  # of a long test split, only the first


@dataclass(frozen=True)
class TestRows:
    """The first test rows of artifacts/features.

    Attributes:
        frame: The encoded rows.
        dense: (R, N).
        ids: (R, F).
        labels: (R,), 0 or 1.
        weights: Sample weights (R,); None if all are 1.
    """

    __test__ = False  # pytest takes a class of this name for tests

    frame: pl.DataFrame
    dense: NDArray[np.float32]
    ids: NDArray[np.int32]
    labels: NDArray[Any]
    weights: NDArray[Any] | None

    @classmethod
    def read(cls, features: Artifact, schema: Schema, max_rows: int = MAX_ROWS) -> Self:
        """Read the rows.

        Raises:
            DataError: There are none, or all of them have the sample weight 0.
        """
        groups, num_rows = [], 0
        for _, rows in read_row_groups(features, SPLIT):
            groups.append(rows.head(max_rows - num_rows))
            num_rows += groups[-1].height
            if num_rows == max_rows:
                break
        if not num_rows:
            raise DataError(
                f"{features.folder / SPLIT}: no test rows, on which an export is compared with the"
                " model; run the features stage with a longer log or a larger"
                " features.split.test_days"
            )
        frame = pl.concat(groups)
        weights = frame[schema.sample_weight].to_numpy() if schema.sample_weight else None
        if weights is not None and not weights.any():
            raise no_row_counts(features, SPLIT, schema.sample_weight)
        return cls(
            frame,
            dense_matrix(frame, schema),
            id_matrix(frame, schema),
            frame[schema.label].to_numpy(),
            weights,
        )

    def metrics(self, scores_R: NDArray[np.float32]) -> Metrics:
        """Compute the metrics of scores of these rows."""
        return metrics_of_rows(self.labels, scores_R, self.weights)
