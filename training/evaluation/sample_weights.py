"""Checks that some rows count: if all have the sample weight 0, loss and metrics are 0 / 0."""

import polars as pl

from common.artifact import Artifact
from common.files import DataError
from features.encode.split import SPLITS
from features.schema.schema import Schema
from training.evaluation.row_groups import read_row_groups


def check_sample_weights(features: Artifact, schema: Schema) -> None:
    """Check that there are rows to learn from, to choose the weights by and to evaluate.

    Raises:
        DataError: All rows of a split have the sample weight 0, or all training rows with another
            weight have the same label.
    """
    if schema.sample_weight is None:
        return
    columns = [schema.label, schema.sample_weight]
    for split in SPLITS:
        labels: set[int] = set()
        for _, rows in read_row_groups(features, split, columns):
            labels |= set(rows.filter(pl.col(schema.sample_weight) > 0)[schema.label].unique())
        if not labels and features.names(split):
            raise no_row_counts(features, split, schema.sample_weight)
        if split == "train" and len(labels) == 1:
            raise DataError(
                f"{features.folder / split}: every row with a sample weight above 0, column "
                f"{schema.sample_weight}, has the label {labels.pop()}, so there is nothing to"
                " learn; give rows of the other label a weight above 0"
            )


def no_row_counts(features: Artifact, split: str, sample_weight: str | None) -> DataError:
    """Return the error that all rows of a split have the sample weight 0."""
    return DataError(
        f"{features.folder / split}: every sample weight, column {sample_weight}, is 0; give"
        " some rows a weight above 0"
    )
