"""The preset bars-x4 gives the ids and folds of BARS' Criteo_x4_001 on real rows.

The expected values are computed by a plain Python version of the benchmark's rules.
"""

import math
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from sklearn.model_selection import StratifiedKFold

from common.config.params import read_preset
from common.layout import FEATURES
from features.encode.feature_state import FeatureState
from features.schema.transforms.floor_ln2 import FloorLn2
from tests.factories.support import CRITEO, make_features, make_params, real_log

BUCKETS = {-3: -3, -2: -2, -1: -1, 0: 0, 1: 1, 2: 2, 3: 1, 4: 1, 10: 5, 260: 30, 17668: 95}
MIN_COUNT = 10


@pytest.mark.parametrize("dtype", [pl.Int64, pl.Float64])
def test_golden_buckets(dtype: type[pl.DataType]) -> None:
    values = pl.DataFrame({"x": pl.Series([*BUCKETS, None], dtype=dtype)})
    found = values.select(FloorLn2(name="floor_ln2").expr(["x"], None))["x"]
    assert found.to_list() == [*BUCKETS.values(), 0]


def bucket(text: str) -> int:
    value = int(text or 0)
    return math.floor(math.log(value) ** 2) if value > 2 else value


def test_ids_and_folds(tmp_path: Path) -> None:
    log = real_log("criteo/kaggle_span_4k.tsv")
    make_features(tmp_path, make_params(data__source=str(log), features=read_preset("bars-x4")))
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    labels = [int(row[0]) for row in rows]
    folds = [
        test
        for _, test in StratifiedKFold(10, shuffle=True, random_state=2018).split(labels, labels)
    ]
    rows_of = {
        "test": sorted(folds[0]),
        "valid": sorted(folds[1]),
        "train": sorted(place for fold in folds[2:] for place in fold),
    }
    state = FeatureState.load(tmp_path / FEATURES / "state")
    found = {
        split: pl.concat(map(pl.read_parquet, sorted((tmp_path / FEATURES / split).iterdir())))
        for split in rows_of
    }
    assert state.schema.dense_features == []
    for number, name in enumerate(CRITEO.names[1:], start=1):
        column = [row[number] for row in rows]
        if name in CRITEO.dense:
            column = [bucket(text) for text in column]
        counts = Counter(column[place] for place in rows_of["train"])
        del counts[""]  # a missing category has the id of unseen values
        words = sorted(
            (value for value, count in counts.items() if count >= MIN_COUNT),
            key=lambda value: (-counts[value], value),
        )
        ids = {value: k for k, value in enumerate(words, start=1)}
        for split, rows_of_split in rows_of.items():
            assert found[split][name].to_list() == [
                ids.get(column[place], len(words) + 1) for place in rows_of_split
            ]
    for split, rows_of_split in rows_of.items():
        assert found[split][CRITEO.label].to_list() == [labels[place] for place in rows_of_split]
