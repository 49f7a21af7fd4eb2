"""The registry of transforms, each against its formula in plain Python or NumPy."""

import math
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.encode.feature_state import MISSING, FeatureState, feature_value
from features.encode.vocabulary import count_values, frequent_values
from features.schema.schema import Schema, check_schema
from features.schema.transforms.quantile import Quantile

COLUMNS = [
    {"kind": "label", "names": ["click"]},
    {"kind": "dense", "names": ["age", "price"], "parse": "float", "transform": "log1p"},
    {"kind": "time", "names": ["at"], "parse": "unix"},
    {"kind": "categorical", "names": ["site", "app"], "parse": "string", "policy": "vocabulary"},
]


def made(transform, of, rows, policy=None, train=None):
    """The values of one derived feature, and the whole schema's transform of the rows."""
    derived = {"name": "made", "transform": transform, "of": of} | (
        {"policy": policy} if policy else {}
    )
    values = {
        "format": {"kind": "json_lines", "null_tokens": []},
        "columns": COLUMNS,
        "derived": [derived],
    }
    schema = check_schema(Schema.model_validate(values), Path("test.yaml"))
    feature = schema.features[-1]
    assert feature.transform is not None
    fitted = feature.transform.fit((rows if train is None else train).lazy(), of)
    return rows.select(feature_value(feature, fitted).alias("made"))["made"], schema, fitted


def rows(**columns):
    height = len(next(iter(columns.values())))
    types = {
        "age": pl.Float64,
        "price": pl.Float64,
        "at": pl.Datetime("us"),
        "site": pl.String,
        "app": pl.String,
    }
    return pl.DataFrame(
        {
            name: pl.Series(columns.get(name, [None] * height), dtype=dtype)
            for name, dtype in types.items()
        }
    )


def test_log1p():
    found, _, _ = made("log1p", ["age"], rows(age=[None, -3, 0, 1, 2.5, 1e6]))
    assert found.dtype == pl.Float32
    assert found.to_list() == pytest.approx(
        [math.log1p(x) for x in (0, 0, 0, 1, 2.5, 1e6)], rel=1e-6
    )


def test_clip():
    found, _, _ = made(
        {"name": "clip", "low": -1, "high": 2.5}, ["age"], rows(age=[None, -3, 0.25, 9])
    )
    assert found.dtype == pl.Float32
    assert found.to_list() == [0, -1, 0.25, 2.5]


@pytest.mark.parametrize(("buckets", "num_values"), [(4, 1000), (10, 37), (50, 7), (2, 1)])
def test_quantiles_hold_equal_counts(buckets, num_values):
    values = np.random.default_rng(1).integers(0, num_values, 5000).astype(float)
    frame = rows(age=[None, *values])
    found, _, fitted = made(
        {"name": "quantile", "buckets": buckets}, ["age"], frame, policy="vocabulary"
    )
    assert found[0] is None
    edges = fitted["edge"].to_numpy()
    assert np.array_equal(found[1:].to_numpy(), [(edges <= value).sum() for value in values])
    assert len(edges) < buckets
    if num_values == 1000:  # hardly any ties
        assert np.bincount(found[1:].to_numpy()).tolist() == pytest.approx(
            [5000 / buckets] * buckets, rel=0.02
        )
    shuffled = frame.sample(fraction=1, shuffle=True, seed=1)
    again = Quantile(name="quantile", buckets=buckets).fit(shuffled.lazy(), ["age"])
    assert again.equals(fitted)


def test_quantiles_of_no_value():
    found, _, fitted = made(
        {"name": "quantile", "buckets": 3}, ["age"], rows(age=[None, None]), policy="vocabulary"
    )
    assert fitted.is_empty()
    assert found.to_list() == [None, None]


def test_floor_ln2_of_fractions():
    found, _, _ = made(
        "floor_ln2", ["age"], rows(age=[None, -1.5, 2.0, 2.5, 100.0]), policy="vocabulary"
    )
    assert found.to_list() == [
        0,
        -1,
        2,
        math.floor(math.log(2.5) ** 2),
        math.floor(math.log(100) ** 2),
    ]


@pytest.mark.parametrize(("name", "expected"), [("hour", [None, 23, 0]), ("weekday", [None, 2, 7])])
def test_parts_of_a_time(name, expected):
    found, _, _ = made(
        name,
        ["at"],
        rows(at=[None, datetime(2014, 10, 21, 23, 59), datetime(2014, 10, 26)]),
        policy="vocabulary",
    )
    assert found.to_list() == expected


def test_cross():
    found, _, _ = made(
        "cross",
        ["site", "app"],
        rows(site=["a", "a", None, "ab", "a"], app=["x", None, "x", "c", "bc"]),
        policy="vocabulary",
    )
    assert found.to_list() == ["a\x1fx", None, None, "ab\x1fc", "a\x1fbc"]


def test_counts_are_of_the_training_rows():
    train = rows(site=["a", "a", "a", "b", "b", "c", None])
    found, _, _ = made(
        {"name": "count", "min_count": 2},
        ["site"],
        rows(site=["a", "b", "c", "new", None]),
        train=train,
    )
    assert found.dtype == pl.Float32
    assert found.to_list() == pytest.approx([math.log1p(3), math.log1p(2), 0, 0, 0], rel=1e-6)


@pytest.mark.parametrize(
    "policy",
    ["vocabulary", {"name": "hash", "buckets": 11}, {"name": "vocabulary_and_hash", "buckets": 3}],
)
@pytest.mark.parametrize(
    ("transform", "of"),
    [
        ({"name": "quantile", "buckets": 3}, ["age"]),
        ("floor_ln2", ["age"]),
        ("hour", ["at"]),
        ("weekday", ["at"]),
        ("cross", ["site", "app"]),
    ],
)
def test_each_category_under_each_policy(tmp_path, transform, of, policy):
    """Saved, loaded and transformed again; ids in range; a missing value is MISSING."""
    random = np.random.default_rng(2)
    frame = rows(
        age=[None, *random.integers(0, 99, 99)],
        price=[1.0] * 100,
        at=[
            None,
            *(datetime(2014, 10, int(day), int(day) % 24) for day in random.integers(1, 30, 99)),
        ],
        site=[None, *random.choice(["a", "b"], 99)],
        app=[None, *random.choice(["x", "y"], 99)],
    )
    values, schema, fitted = made(transform, of, frame, policy)
    vocabularies = {
        name: frequent_values(count_values(frame.lazy(), pl.col(name)), 2)
        for name in ("site", "app")
    }
    vocabularies["made"] = frequent_values(
        count_values(values.to_frame().lazy(), pl.col("made")), 2
    )
    if isinstance(policy, dict) and policy["name"] == "hash":
        vocabularies["made"] = vocabularies["made"].clear()
    state = FeatureState(
        schema, "frequency", vocabularies, {"made": fitted} if fitted is not None else {}
    )
    state.save(tmp_path / "state")
    ready = FeatureState.load(tmp_path / "state").transform(frame)
    assert ready.equals(state.transform(frame))
    assert ready["made"].is_between(0, state.cardinalities[-1] - 1).all()
    if transform != "floor_ln2":
        assert ready["made"][0] == MISSING
    assert ready["made"].n_unique() > 2
