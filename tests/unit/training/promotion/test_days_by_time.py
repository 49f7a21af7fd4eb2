"""The comparison of models of a log whose schema names the column of the day."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from common.artifact import Artifact
from common.bundle_layout import MODEL
from common.files import DataError
from common.layout import PARQUET
from features.encode.days import read_days
from features.encode.split import TEST, TRAIN
from features.ingest.stage import used_shards
from tests.factories.models import make_bundle
from tests.factories.support import make_features, make_params
from training.inference.bundle import load_bundle
from training.promotion.comparable import check_comparable
from training.promotion.evaluated_test_set import EvaluatedTestSet

SCHEMA = """
format: {kind: text, separator: ",", quote: null, header: false, null_tokens: [""]}
columns:
  - {kind: time, names: [ts], parse: "%Y-%m-%d %H:%M:%S"}
  - {kind: label, names: [click]}
  - {kind: dense, names: [number], parse: integer, transform: log1p}
  - {kind: categorical, names: [shop], parse: string, policy: vocabulary}
days: {column: ts}
"""
NUM_DAYS, ROWS_A_DAY = 5, 24


def test_days_are_compared_by_their_dates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All days are in one file, and the model was trained on the first three and a half."""
    monkeypatch.setattr("features.schema.schema.SCHEMAS", tmp_path)
    (tmp_path / "shop.yaml").write_text(SCHEMA)
    lines = [
        f"{datetime(2026, 3, 1) + timedelta(hours=k)},{k % 3 == 0:d},{k},shop {k % 4}\n"
        for k in range(NUM_DAYS * ROWS_A_DAY)
    ]
    (tmp_path / "log.csv").write_text("".join(reversed(lines)))
    split = {"by": "days", "valid_days": 0.5, "test_days": 1, "test_first": False}
    params = make_params(data__source="log.csv", data__schema="shop", features__split=split)
    make_features(tmp_path, params)
    make_bundle(tmp_path, params)
    bundle = load_bundle(tmp_path / MODEL)
    assert bundle.manifest.trained_days == [f"2026-03-0{k}" for k in (1, 2, 3, 4)]

    parquet = Artifact.open(tmp_path / PARQUET)
    shards = used_shards(parquet)
    days = read_days(parquet, shards, 1)

    def test_set(test_day: int) -> EvaluatedTestSet:
        def split_of(k: int) -> object:
            return np.full(days[k].num_rows, TEST if k == test_day else TRAIN, np.uint8)

        return EvaluatedTestSet(bundle.state.schema, shards, days, split_of, parquet, parquet)  # type: ignore[arg-type]

    check_comparable(bundle, test_set(4))
    with pytest.raises(DataError, match="was trained on 2026-03-04, which contains test rows"):
        check_comparable(bundle, test_set(3))
