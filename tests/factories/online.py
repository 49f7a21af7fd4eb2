"""Feature states for tests of the online encoding: fitted to rows, without the features stage."""

import polars as pl

from features.encode.feature_state import (
    FeatureState,
    Layout,
    dtype_of_table,
    feature_value,
    fit_transforms,
)
from features.encode.vocabulary import frequent_values
from features.schema.schema import Schema
from features.value_counts import count_values


def fit_state(
    schema: Schema, rows: pl.DataFrame, layout: Layout = "frequency", min_count: int = 1
) -> FeatureState:
    """Fit a state without lists and shared tables to typed rows."""
    fitted = fit_transforms(schema, rows.lazy())
    vocabularies = {}
    for feature in schema.features:
        if feature.policy is None:
            continue
        value = feature_value(feature, fitted.get(feature.name))
        if layout == "appearance":
            empty = "" if dtype_of_table(schema, feature.name, fitted) == pl.String else 0
            values = rows.select(value.fill_null(empty).alias("value"))["value"]
            values = values.unique(maintain_order=True)
        else:
            values = frequent_values(count_values(rows.lazy(), value), min_count)
        is_hashed = feature.policy.name == "hash"
        vocabularies[feature.name] = values.clear() if is_hashed else values
    return FeatureState(schema, layout, vocabularies, fitted)
