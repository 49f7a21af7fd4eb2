"""Each transform against its formula in plain Python or NumPy."""

import math
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.encode.feature_state import MISSING, FeatureState, feature_value, fit_transforms
from features.encode.vocabulary import frequent_values
from features.schema.schema import Schema, check_schema
from features.schema.transforms.clip import Clip
from features.schema.transforms.floor_ln2 import FloorLn2
from features.schema.transforms.log1p import Log1p
from features.value_counts import count_values

COLUMNS: list[dict[str, Any]] = [
    {"kind": "label", "names": ["click"]},
    {"kind": "dense", "names": ["age", "price"], "parse": "float", "transform": "log1p"},
    {"kind": "time", "names": ["at"], "parse": "unix"},
    {"kind": "categorical", "names": ["site", "app"], "parse": "string", "policy": "vocabulary"},
]


def apply(
    transform: str | dict[str, Any],
    of: list[str],
    rows: pl.DataFrame,
    policy: str | dict[str, Any] | None = None,
    train: pl.DataFrame | None = None,
) -> tuple[pl.Series, Schema, pl.DataFrame | None]:
    """Return the values of a derived feature `made`, its schema, and what the transform learned."""
    derived: dict[str, Any] = {"name": "made", "transform": transform, "of": of}
    if policy:
        derived["policy"] = policy
    values = {
        "format": {"kind": "json_lines", "null_tokens": []},
        "columns": COLUMNS,
        "derived": [derived],
    }
    schema = check_schema(Schema.model_validate(values), Path("test.yaml"))
    feature = schema.features[-1]
    fitted = fit_transforms(schema, (rows if train is None else train).lazy()).get("made")
    return rows.select(feature_value(feature, fitted).alias("made"))["made"], schema, fitted


def make_rows(**columns: Sequence[Any]) -> pl.DataFrame:
    """Return typed rows; columns that are not given are null."""
    height = len(next(iter(columns.values())))
    dtypes: dict[str, Any] = {
        "age": pl.Float64,
        "price": pl.Float64,
        "at": pl.Datetime("us"),
        "site": pl.String,
        "app": pl.String,
    }
    return pl.DataFrame(
        {
            name: pl.Series(columns.get(name, [None] * height), dtype=dtype)
            for name, dtype in dtypes.items()
        }
    )


def test_log1p() -> None:
    values, _, _ = apply("log1p", ["age"], make_rows(age=[None, -3, 0, 1, 2.5, 1e6]))
    assert values.dtype == pl.Float32
    assert values.to_list() == pytest.approx(
        [math.log1p(x) for x in (0, 0, 0, 1, 2.5, 1e6)], rel=1e-6
    )


def test_clip() -> None:
    values, _, _ = apply(
        {"name": "clip", "low": -1, "high": 2.5}, ["age"], make_rows(age=[None, -3, 0.25, 9])
    )
    assert values.dtype == pl.Float32
    assert values.to_list() == [0, -1, 0.25, 2.5]


def test_clip_of_integers_keeps_the_fraction_of_its_limits() -> None:
    clip = Clip(name="clip", low=0.5, high=2.5)
    rows = pl.DataFrame({"age": pl.Series([None, -3, 1, 9], dtype=pl.Int64)})
    assert rows.select(clip.expr(["age"], None))["age"].to_list() == [0.5, 0.5, 1, 2.5]


@pytest.mark.parametrize("dtype", [pl.Float64, pl.Int64])
@pytest.mark.parametrize(
    "transform",
    [Log1p(name="log1p"), Clip(name="clip", low=-3e38, high=3e38), FloorLn2(name="floor_ln2")],
    ids=lambda transform: transform.name,
)
def test_the_largest_numbers_make_finite_features(
    transform: Log1p | Clip | FloorLn2, dtype: type[pl.DataType]
) -> None:
    largest = 2**63 - 1 if dtype == pl.Int64 else sys.float_info.max
    rows = pl.DataFrame(
        {"x": pl.Series([largest, -largest, 3_000_000_000, -3_000_000_000], dtype=dtype)}
    )
    values = rows.select(transform.expr(["x"], None))["x"]
    assert values.null_count() == 0
    assert values.cast(pl.Float64).is_finite().all()
    high, low, middle, small = values
    assert low <= small <= middle <= high


@pytest.mark.parametrize(("buckets", "num_values"), [(4, 1000), (10, 37), (50, 7), (2, 1)])
def test_quantiles_hold_equal_counts(buckets: int, num_values: int) -> None:
    ages = np.random.default_rng(1).integers(0, num_values, 5000).astype(float)
    frame = make_rows(age=[None, *ages])
    values, _, fitted = apply(
        {"name": "quantile", "buckets": buckets}, ["age"], frame, policy="vocabulary"
    )
    assert values[0] is None
    assert fitted is not None
    edges = fitted["edge"].to_numpy()
    assert np.array_equal(values[1:].to_numpy(), [(edges <= age).sum() for age in ages])
    assert len(edges) < buckets
    if num_values == 1000:  # hardly any ties
        assert np.bincount(values[1:].to_numpy()).tolist() == pytest.approx(
            [5000 / buckets] * buckets, rel=0.02
        )
    shuffled = frame.sample(fraction=1, shuffle=True, seed=1)
    _, _, again = apply(
        {"name": "quantile", "buckets": buckets}, ["age"], shuffled, policy="vocabulary"
    )
    assert again is not None
    assert again.equals(fitted)


def test_quantiles_of_missing_values_only() -> None:
    values, _, fitted = apply(
        {"name": "quantile", "buckets": 3},
        ["age"],
        make_rows(age=[None, None]),
        policy="vocabulary",
    )
    assert fitted is not None
    assert fitted.is_empty()
    assert values.to_list() == [None, None]


def test_floor_ln2_of_fractions() -> None:
    values, _, _ = apply(
        "floor_ln2", ["age"], make_rows(age=[None, -1.5, 2.0, 2.5, 100.0]), policy="vocabulary"
    )
    assert values.to_list() == [
        0,
        -1,
        2,
        math.floor(math.log(2.5) ** 2),
        math.floor(math.log(100) ** 2),
    ]


@pytest.mark.parametrize(("name", "expected"), [("hour", [None, 23, 0]), ("weekday", [None, 2, 7])])
def test_parts_of_a_time(name: str, expected: list[int | None]) -> None:
    values, _, _ = apply(
        name,
        ["at"],
        make_rows(at=[None, datetime(2014, 10, 21, 23, 59), datetime(2014, 10, 26)]),
        policy="vocabulary",
    )
    assert values.to_list() == expected


def test_cross() -> None:
    values, _, _ = apply(
        "cross",
        ["site", "app"],
        make_rows(site=["a", "a", None, "ab", "a"], app=["x", None, "x", "c", "bc"]),
        policy="vocabulary",
    )
    assert values.to_list() == ["a\x1fx", None, None, "ab\x1fc", "a\x1fbc"]


def test_only_training_rows_are_counted() -> None:
    train = make_rows(site=["a", "a", "a", "b", "b", "c", None])
    values, _, _ = apply(
        {"name": "count", "min_count": 2},
        ["site"],
        make_rows(site=["a", "b", "c", "new", None]),
        train=train,
    )
    assert values.dtype == pl.Float32
    assert values.to_list() == pytest.approx([math.log1p(3), math.log1p(2), 0, 0, 0], rel=1e-6)


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
def test_each_categorical_transform_with_each_policy(
    tmp_path: Path, transform: str | dict[str, Any], of: list[str], policy: str | dict[str, Any]
) -> None:
    """A loaded state gives the same ids; they are in range, and a missing value is MISSING."""
    random = np.random.default_rng(2)
    frame = make_rows(
        age=[None, *random.integers(0, 99, 99)],
        price=[1.0] * 100,
        at=[
            None,
            *(datetime(2014, 10, int(day), int(day) % 24) for day in random.integers(1, 30, 99)),
        ],
        site=[None, *random.choice(["a", "b"], 99)],
        app=[None, *random.choice(["x", "y"], 99)],
    )
    values, schema, fitted = apply(transform, of, frame, policy)
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
    ready = FeatureState.load(tmp_path / "state").encode(frame)
    assert ready.equals(state.encode(frame))
    assert ready["made"].is_between(0, state.cardinalities[-1] - 1).all()
    if transform != "floor_ln2":
        assert ready["made"][0] == MISSING
    assert ready["made"].n_unique() > 2
