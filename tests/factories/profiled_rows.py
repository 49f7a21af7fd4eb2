"""Random rows with a feature of every kind and policy, and their feature state.

They are the input of the tests of data profiles.
"""

from pathlib import Path

import numpy as np
import polars as pl

from features.encode.feature_state import FeatureState, Layout, feature_value, fit_transforms
from features.schema.schema import Schema, check_schema

BUCKETS = 3  # of the feature `user`
COLUMNS = [
    {"kind": "label", "names": ["click"]},
    {"kind": "dense", "names": ["price"], "parse": "integer", "transform": "log1p"},
    {"kind": "categorical", "names": ["site"], "parse": "string", "policy": "vocabulary"},
    {
        "kind": "categorical",
        "names": ["user"],
        "parse": "integer",
        "policy": {"name": "vocabulary_and_hash", "buckets": BUCKETS},
    },
    {
        "kind": "categorical",
        "names": ["page"],
        "parse": "integer",
        "policy": {"name": "hash", "buckets": 5},
    },
    {"kind": "time", "names": ["at"], "parse": "unix"},
]
DERIVED = [
    {"name": "both", "transform": "cross", "of": ["site", "user"], "policy": "vocabulary"},
    {"name": "often", "transform": {"name": "count", "min_count": 1}, "of": ["user"]},
    {"name": "weekday", "transform": "weekday", "of": ["at"], "policy": "vocabulary"},
]
SCHEMA = check_schema(
    Schema.model_validate(
        {
            "format": {"kind": "json_lines", "null_tokens": []},
            "columns": COLUMNS,
            "derived": DERIVED,
        }
    ),
    Path("test.yaml"),
)
HASHED = ["page"]  # features without a vocabulary


def draw_rows(num_rows: int, seed: int) -> pl.DataFrame:
    """Return random typed rows of SCHEMA. Some values of `price` and `site` are missing."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "click": (rng.random(num_rows) < 0.3).astype(np.uint8),
            "price": rng.integers(-3, 5000, num_rows),
            "site": rng.choice(["a", "b", "c", "d"], num_rows),
            "user": rng.zipf(1.5, num_rows) % 200,
            "page": rng.integers(0, 50, num_rows),
            "at": pl.Series(rng.integers(0, 10**6, num_rows) * 10**6).cast(pl.Datetime("us")),
        }
    )
    some = pl.Series(rng.random(num_rows) < 0.2)
    return frame.with_columns(
        pl.when(some).then(None).otherwise(pl.col(name)).alias(name) for name in ("price", "site")
    )


def fit_state(rows: pl.DataFrame, ids: Layout = "frequency") -> FeatureState:
    """Return the feature state of the rows; values that occur fewer than 4 times are rare."""
    fitted = fit_transforms(SCHEMA, rows.lazy())
    vocabularies = {}
    for feature in SCHEMA.features:
        if feature.policy:
            counts = (
                rows.select(feature_value(feature, None).alias("value"))
                .drop_nulls()["value"]
                .value_counts()
            )
            values = counts.filter(pl.col("count") >= 4).sort(
                "count", "value", descending=[True, False]
            )["value"]
            vocabularies[feature.name] = (
                values.clear() if feature.name in HASHED and ids == "frequency" else values
            )
    return FeatureState(SCHEMA, ids, vocabularies, fitted)
