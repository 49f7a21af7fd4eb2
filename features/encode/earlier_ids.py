"""The ids that an earlier feature state gives to the values that a later one has encoded."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.encode.feature_state import NUM_RESERVED, UNSEEN, FeatureState, stable_hash


def state_fault(earlier: FeatureState, later: FeatureState) -> str | None:
    """Return why a later state is not the earlier one with more values; None if it is.

    Vocabularies only grow (features/encode/vocabulary_growth.py), so that an id keeps its meaning.
    """
    if earlier.layout != later.layout or earlier.schema.features != later.schema.features:
        return "it has other features"
    for name, values in earlier.vocabularies.items():
        now = later.vocabularies[name]
        has_grown = earlier.layout == "frequency" and values.equals(now[: len(values)])
        if not (has_grown or values.equals(now)):
            return f"ids of {name} have changed since: vocabularies were fitted again, or compacted"
    return None


def earlier_ids(earlier: FeatureState, later: FeatureState, table: str) -> NDArray[np.int32] | None:
    """Return the earlier id of each id of an embedding table; None if all are the same.

    A value that the earlier state does not know is unseen there, or in a hash bucket.

    Args:
        earlier: The earlier state.
        later: The state that has grown from it (`state_fault`).
        table: The name of the table.

    Returns:
        The ids, int32 (n,), where n is the number of ids of the later state.
    """
    num_known, values = len(earlier.vocabularies[table]), later.vocabularies[table]
    if len(values) == num_known:
        return None
    num_buckets = later.schema.policy_of_table(table).buckets
    new = values[num_known:].to_frame("value")
    ids = np.full(new.height, UNSEEN, np.int32)
    if num_buckets:
        buckets = NUM_RESERVED + stable_hash(pl.col("value")) % num_buckets
        ids = new.select(buckets).to_series().to_numpy().astype(np.int32)
    same = np.arange(NUM_RESERVED + num_buckets + num_known, dtype=np.int32)
    return np.concatenate([same, ids])
