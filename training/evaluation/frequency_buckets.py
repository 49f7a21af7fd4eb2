"""Frequency buckets: ids grouped by how often they occur in the training rows, one bucket a decade.

The frequency of an id is the number of training rows that have it, which is how often its row of
the embedding table was trained. It is counted in the feature files, so it is right for every layout
of ids, and for a value that got an id of its own only after some days.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.artifact import Artifact
from features.encode.feature_state import FeatureState
from features.schema.check_params import check_frequency_bucket_column
from training.evaluation.row_groups import read_row_groups

# The bucket of an id that many values share, and of an id that no training row has.
UNSEEN_OR_RARE = "unseen or rare"
MAX_DECADES = 19  # of an int64


@dataclass(frozen=True)
class FrequencyBuckets:
    """The frequency buckets of one categorical feature with C ids.

    Attributes:
        column: Name of the feature.
        names: Names of the buckets, rarer ids first.
        num_ids: Number of ids of each bucket, in the order of `names`.
        bucket_of_id: For each id the index of its bucket in `names`, (C,).
    """

    column: str
    names: list[str]
    num_ids: list[int]
    bucket_of_id: NDArray[np.int64]


def make_frequency_buckets(
    column: str | None, state: FeatureState, features: Artifact
) -> FrequencyBuckets | None:
    """Count the ids of a categorical feature in one pass over the training rows.

    Args:
        column: Name of the feature; None selects the feature with the most ids, of those with one
            value in each row.
        state: The feature state that the training rows were encoded with.
        features: artifacts/features, with the training rows.

    Returns:
        The buckets, or None if there is no categorical feature with one value in each row.

    Raises:
        ConfigError: `column` is not such a feature.
    """
    schema = state.schema
    check_frequency_bucket_column(column, schema.single_valued_features)
    if not schema.single_valued_features:
        return None
    num_ids = dict(zip(schema.categorical_features, state.cardinalities, strict=True))
    column = column or max(schema.single_valued_features, key=num_ids.__getitem__)
    count_C = np.zeros(num_ids[column], np.int64)
    for _, rows in read_row_groups(features, "train", [column]):
        count_C += np.bincount(rows[column].to_numpy(), minlength=len(count_C))
    return _buckets_by_decade(column, count_C, state.shared_ids(column))


def _buckets_by_decade(
    column: str, count_C: NDArray[np.int64], shared_ids: dict[int, str]
) -> FrequencyBuckets:
    # Decade 0 has the counts below 10.
    decade_C = np.searchsorted(10 ** np.arange(1, MAX_DECADES), count_C, side="right")
    decades = [f"{10**k:,}–{10 ** (k + 1) - 1:,}" for k in range(int(decade_C.max()) + 1)]
    names = list(dict.fromkeys([UNSEEN_OR_RARE, *shared_ids.values(), *decades]))
    bucket_of_id = decade_C + names.index(decades[0])
    bucket_of_id[count_C == 0] = names.index(UNSEEN_OR_RARE)
    for shared_id, name in shared_ids.items():
        bucket_of_id[shared_id] = names.index(name)
    num_ids = np.bincount(bucket_of_id, minlength=len(names)).tolist()
    return FrequencyBuckets(column, names, num_ids, bucket_of_id)
