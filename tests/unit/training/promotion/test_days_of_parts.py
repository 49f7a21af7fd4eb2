"""A model of a log in folders named by day: scores, the smoke test, and the comparison."""

from pathlib import Path

import polars as pl
import pytest

from common.artifact import Artifact
from common.bundle_layout import MODEL
from common.files import DataError
from common.layout import PARQUET
from features.encode.days import read_days
from features.encode.split import TEST, TRAIN
from features.ingest.stage import used_shards
from tests.factories.hive_logs import NUM_ROWS, names_of_log, schema_of_folders, write_log
from tests.factories.models import make_bundle
from tests.factories.support import make_features
from training.inference.bundle import Bundle, load_bundle
from training.inference.predict import predict
from training.promotion.comparable import check_comparable
from training.promotion.evaluated_test_set import EvaluatedTestSet
from training.promotion.smoke_test import smoke_test


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    schema_of_folders(tmp_path, monkeypatch)
    params = write_log(tmp_path)
    make_features(tmp_path, params)
    make_bundle(tmp_path, params)
    return load_bundle(tmp_path / MODEL)


def scores(bundle_of: Path, source: Path, tmp_path: Path) -> pl.DataFrame:
    predict(bundle_of, source, tmp_path / "scores.parquet")
    return pl.read_parquet(tmp_path / "scores.parquet")


def test_predict_reads_a_folder_as_collect_does(bundle: Bundle, tmp_path: Path) -> None:
    all_scores = scores(tmp_path / MODEL, tmp_path / "logs", tmp_path)
    files = all_scores["file"].unique(maintain_order=True).to_list()
    assert files == [str(tmp_path / "logs" / name) for name in names_of_log()]
    one = scores(tmp_path / MODEL, tmp_path / "logs" / "day=2026-01-10", tmp_path)
    last = [*names_of_log()][3]
    alone = scores(tmp_path / MODEL, tmp_path / "logs" / last, tmp_path)
    expected = all_scores.filter(pl.col("file") == str(tmp_path / "logs" / last))["score"]
    assert one["score"][NUM_ROWS:].equals(expected)
    assert alone["score"].equals(expected)
    # The hour is a feature, so without its folder the same file has other scores or none.
    other = tmp_path / "hour=23" / "part-0.parquet"
    other.parent.mkdir()
    other.write_bytes((tmp_path / "logs" / last).read_bytes())
    with pytest.raises(DataError, match="no column 'day'"):
        scores(tmp_path / MODEL, other, tmp_path)


def test_the_smoke_test_has_the_columns_of_the_folders(bundle: Bundle, tmp_path: Path) -> None:
    assert smoke_test(bundle, tmp_path / MODEL, tmp_path) is None


def test_training_days_are_found_among_several_files_for_each_day(
    bundle: Bundle, tmp_path: Path
) -> None:
    """The model was trained on the first two days; a file of the third has the test rows."""
    parquet = Artifact.open(tmp_path / PARQUET)
    shards = used_shards(parquet)
    days = read_days(parquet, shards, 1)

    def test_set(test_day: int) -> EvaluatedTestSet:
        def split_of(k: int) -> object:
            codes = pl.Series([TRAIN] * days[k].num_rows, dtype=pl.UInt8).to_numpy().copy()
            if k == test_day:
                codes[:NUM_ROWS] = TEST  # the first file of the day
            return codes

        return EvaluatedTestSet(bundle.state.schema, shards, days, split_of, parquet, parquet)  # type: ignore[arg-type]

    assert [shard.name for shard in test_set(2).files] == [[*names_of_log()][4]]
    check_comparable(bundle, test_set(2))
    with pytest.raises(DataError, match=r"trained on raw/day=2026-01-10/hour=07/part-0\.parquet"):
        check_comparable(bundle, test_set(1))
