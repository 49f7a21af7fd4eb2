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
from tests.factories.dated_logs import line, use_schemas_of, write_schema
from tests.factories.models import make_bundle
from tests.factories.support import make_features, make_params
from training.inference.bundle import load_bundle
from training.promotion.comparable import check_comparable
from training.promotion.evaluated_test_set import EvaluatedTestSet

NUM_DAYS, ROWS_A_DAY = 5, 24


def test_days_are_compared_by_their_dates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All days are in one file, and the model was trained on the first three and a half."""
    use_schemas_of(tmp_path, monkeypatch)
    write_schema(tmp_path)
    start = datetime(2026, 3, 1)
    lines = [line(start + timedelta(hours=k), k) for k in range(NUM_DAYS * ROWS_A_DAY)]
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
