"""The preset dlrm-kaggle gives the features of facebookresearch/dlrm on real rows."""

import hashlib
from pathlib import Path

import numpy as np
import polars as pl

from common.config.params import read_preset
from common.files import read_json
from common.layout import FEATURES, PARQUET
from features.encode.feature_state import FeatureState
from tests.factories.support import make_features, make_params, real_log

COUNTS = [
    27,
    92,
    172,
    157,
    12,
    7,
    183,
    19,
    2,
    142,
    173,
    170,
    166,
    14,
    170,
    168,
    9,
    127,
    44,
    4,
    169,
    6,
    10,
    125,
    20,
    90,
]


def test_features_of_the_reference(tmp_path: Path) -> None:
    log = real_log("criteo/kaggle_200.tsv")
    params = make_params(data__source=str(log), features=read_preset("dlrm-kaggle"))
    make_features(tmp_path, params)
    state = FeatureState.load(tmp_path / FEATURES / "state")
    assert [len(values) for values in state.vocabularies.values()] == COUNTS

    raw = pl.read_parquet(tmp_path / PARQUET / f"{log.name}.parquet")
    ids_NF = state.encode(raw).select(state.schema.categorical).to_numpy().astype("<i4")
    assert ids_NF[5].tolist() == [
        1,
        4,
        5,
        5,
        0,
        2,
        5,
        3,
        0,
        5,
        5,
        5,
        5,
        0,
        5,
        5,
        0,
        5,
        1,
        1,
        5,
        0,
        3,
        5,
        1,
        2,
    ]
    assert (
        hashlib.sha256(np.ascontiguousarray(ids_NF).tobytes())
        .hexdigest()
        .startswith("deee0a9e8b673dc7")
    )

    data = read_json(tmp_path / FEATURES / "data.json")
    assert [day["num_rows"] for day in data["days"]] == [29, 29, 29, 29, 28, 28, 28]
    split = {
        name: pl.read_parquet(tmp_path / FEATURES / name / "*.parquet")
        for name in ("train", "test", "valid")
    }
    assert pl.concat(split.values()).equals(state.encode(raw))
    assert split["test"].equals(state.encode(raw[172:186]))
    assert split["valid"].equals(state.encode(raw[186:200]))

    dense = state.encode(raw)[state.schema.dense[1]].to_numpy()
    expected = np.log(
        np.maximum(raw[state.schema.dense[1]].fill_null(0).to_numpy(), 0).astype(np.float32) + 1
    )
    np.testing.assert_allclose(dense, expected, rtol=1e-6)
