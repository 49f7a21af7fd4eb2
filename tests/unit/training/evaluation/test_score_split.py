"""Metrics by day and by frequency bucket equal those of the same rows in scores.parquet."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.artifact import Artifact, write_manifest
from common.bundle_layout import STATE
from common.config.loading import ConfigError
from common.config.params import Params
from common.layout import EVALUATION, FEATURES
from features.encode.feature_state import MISSING, UNSEEN, FeatureState
from tests.factories import support
from tests.factories.features import write_features
from tests.factories.models import NUM_ROWS, log_lines, make_bundle, read_split, small_params
from training.evaluation import metrics
from training.evaluation.frequency_buckets import make_frequency_buckets
from training.evaluation.stage import evaluate

LONG_SPLIT = {"by": "days", "valid_days": 1.5, "test_days": 2.5, "test_first": False}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("score_split")
    (root / "log.tsv").write_text("\n".join(log_lines(NUM_ROWS, 5)))
    params = small_params(root / "log.tsv")
    params = params.model_copy(
        update={
            "features": support.make_params(
                features__min_count=3, features__split=LONG_SPLIT
            ).features
        }
    )
    support.make_features(root, params)
    make_bundle(root, params)
    evaluate(params, root)
    return root, params


def check(table: pl.DataFrame, name: str, rows: pl.DataFrame) -> None:
    """Compare each line of a table of metrics with the rows of the same value in column `name`."""
    assert set(table[name]) == set(rows[name])
    for line in table.iter_rows(named=True):
        part = rows.filter(pl.col(name) == line[name])
        expected = metrics.metrics_of_rows(part["label"].to_numpy(), part["score"].to_numpy())
        assert {key: line[key] for key in expected} == pytest.approx(expected, rel=1e-12)
        assert line["auc_low"] < line["auc"] < line["auc_high"]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_days(evaluated: tuple[Path, Params], split: str) -> None:
    rows = pl.read_parquet(evaluated[0] / EVALUATION / "scores.parquet").filter(split=split)
    sizes = {
        int(path.stem[-3:]): len(pl.read_parquet(path))
        for path in sorted((evaluated[0] / FEATURES / split).glob("*"))
    }
    rows = rows.with_columns(pl.Series("day", np.repeat(list(sizes), list(sizes.values()))))
    table = pl.read_csv(evaluated[0] / EVALUATION / "plots/days.csv").filter(split=split)
    assert table["day"].to_list() == {"valid": [3, 4], "test": [4, 5, 6]}[split]
    check(table, "day", rows)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_frequency_buckets(evaluated: tuple[Path, Params], split: str) -> None:
    state = FeatureState.load(evaluated[0] / FEATURES / STATE)
    column = state.schema.categorical_features[int(np.argmax(state.cardinalities))]
    counts = dict(read_split(evaluated[0], "train")[column].value_counts().iter_rows())

    def bucket(value: int) -> str:
        if value in (UNSEEN, MISSING):
            return {UNSEEN: "unseen or rare", MISSING: "missing"}[value]
        decade = len(str(counts[value])) - 1
        return f"{10**decade}–{10 ** (decade + 1) - 1}"

    rows = pl.read_parquet(evaluated[0] / EVALUATION / "scores.parquet").filter(split=split)
    rows = rows.with_columns(
        pl.Series(
            "frequency_bucket", [bucket(value) for value in read_split(evaluated[0], split)[column]]
        )
    )
    table = pl.read_csv(evaluated[0] / EVALUATION / "plots/frequency_buckets.csv").filter(
        split=split
    )
    assert table["frequency_bucket"].to_list() == [
        "unseen or rare",
        "missing",
        "1–9",
        "10–99",
        "100–999",
    ]
    check(table, "frequency_bucket", rows)


def test_frequency_buckets_of_a_chosen_column(evaluated: tuple[Path, Params]) -> None:
    state = FeatureState.load(evaluated[0] / FEATURES / STATE)
    buckets = make_frequency_buckets("C2", state, Artifact.open(evaluated[0] / FEATURES))
    assert buckets is not None
    assert (buckets.column, sum(buckets.num_ids)) == ("C2", state.cardinalities[1])
    with pytest.raises(
        ConfigError,
        match=r"params.yaml: evaluate.frequency_bucket_column: 'C27' is no categorical feature with one value; there are: C1, .*C26",
    ):
        make_frequency_buckets("C27", state, Artifact.open(evaluated[0] / FEATURES))


@pytest.mark.parametrize(
    ("layout", "shared"),
    [
        ("frequency", {0: "unseen or rare", 1: "missing"}),
        ("appearance", {10: "unseen or rare"}),
        ("padded", {11: "unseen, rare or missing"}),
    ],
)
def test_shared_ids_of_every_layout(tmp_path: Path, layout: str, shared: dict[int, str]) -> None:
    """There are ten values. An id that no training row has counts as unseen."""
    schema = write_features(tmp_path, {"train": [400]})
    values = FeatureState.load(tmp_path / FEATURES / STATE).vocabularies
    state = FeatureState(schema, layout, values, {})  # type: ignore[arg-type]
    assert state.shared_ids("C3") == shared
    train = tmp_path / FEATURES / "train"
    frame = pl.read_parquet(train / "day_00.parquet").with_columns(pl.lit(5, pl.Int32).alias("C3"))
    frame.write_parquet(train / "day_00.parquet")
    write_manifest(tmp_path / FEATURES, {})
    buckets = make_frequency_buckets("C3", state, Artifact.open(tmp_path / FEATURES))
    assert buckets is not None
    names = [buckets.names[bucket] for bucket in buckets.bucket_of_id]
    assert names == [
        shared.get(place, "100–999" if place == 5 else "unseen or rare")
        for place in range(state.cardinalities[2])
    ]
