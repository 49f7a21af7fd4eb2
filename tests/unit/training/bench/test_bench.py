"""The files of `clickmill bench`, and its training step, which equals that of the train stage."""

from pathlib import Path

import polars as pl
import pytest
import torch

from common.artifact import Artifact
from common.files import DataError
from common.layout import FEATURES
from features.encode.feature_state import FeatureState
from tests.factories.features import CARDINALITY, training_params, write_features
from training.bench.caches import system_caches
from training.bench.run import ALL, bench
from training.bench.step import Step
from training.bench.step_times import table_sizes
from training.loop.datamodule import FeatureData
from training.loop.lightning_module import TrainDLRM
from training.loop.losses import logloss
from training.loop.schedule import Schedule
from training.models.factory import build_model
from training.stage import make_trainer

NUM_ROWS = 150


def test_bench_compares_random_ids_the_log_and_a_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = write_features(tmp_path, {"train": [100, 100], "valid": [10]})
    bench(training_params(), tmp_path, "trace", NUM_ROWS)
    hits = pl.read_csv(tmp_path / "runs/bench/hit_rate.csv")
    assert hits["ids"].unique(maintain_order=True).to_list() == ["random", "log", "trace"]
    assert hits["column"].unique(maintain_order=True).to_list() == [
        ALL,
        *schema.categorical_features,
    ]
    log, trace = (hits.filter(ids=name).drop("ids") for name in ("log", "trace"))
    of_columns = pl.col("column") != ALL
    assert log.filter(of_columns).equals(trace.filter(of_columns))  # equal column by column
    assert not log.filter(of_columns).equals(hits.filter(of_columns, ids="random").drop("ids"))
    assert (
        hits.filter(column=schema.categorical_features[0], cache_rows=16)["hit_rate"].to_list()
        == [1 - CARDINALITY / NUM_ROWS] * 3
    )
    times = pl.read_csv(tmp_path / "runs/bench/step_time.csv")
    assert times["table_rows"].unique().to_list() == [
        CARDINALITY * len(schema.categorical_features)
    ]
    assert len(times) == 3
    assert (
        times.select((pl.col("tables_ms") > 0) & (pl.col("tables_ms") < pl.col("step_ms")))
        .to_series()
        .all()
    )
    assert (tmp_path / "runs/bench/bench.png").read_bytes().startswith(b"\x89PNG")
    assert "random" in capsys.readouterr().out


def test_bench_of_random_ids_measures_only_random_ids(tmp_path: Path) -> None:
    write_features(tmp_path, {"train": [100], "valid": [10]})
    bench(training_params(), tmp_path, "random", NUM_ROWS)
    for name in ("hit_rate", "step_time"):
        assert pl.read_csv(tmp_path / f"runs/bench/{name}.csv")["ids"].unique().to_list() == [
            "random"
        ]


def test_bench_without_features(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json"):
        bench(training_params(), tmp_path, "trace", NUM_ROWS)


def test_the_step_equals_that_of_the_train_stage(tmp_path: Path) -> None:
    """The same batches give the same weights with Lightning and without it."""
    write_features(tmp_path, {"train": [100, 100], "valid": [10]})
    params = training_params(embedding_optimizer={"name": "rowwise_adagrad", "lr": 0.1})
    state = FeatureState.load(tmp_path / "artifacts/features/state")
    data = FeatureData(Artifact.open(tmp_path / FEATURES), state.schema, params.train)
    models = [
        build_model(
            params.model,
            state.cardinalities,
            len(state.schema.dense_features),
            torch.Generator().manual_seed(0),
        )
        for _ in range(2)
    ]
    schedule = Schedule.make(1, data.train_batches().steps_per_epoch, validations=1)
    step = Step(models[0], logloss, params.train)
    for batch in data.train_batches().steps(0, schedule.num_steps):
        step(batch.rows)
    make_trainer(params.train, tmp_path, "cpu", schedule).fit(
        TrainDLRM(models[1], logloss, params.train, schedule), data
    )
    weights = [model.state_dict() for model in models]
    start = build_model(
        params.model,
        state.cardinalities,
        len(state.schema.dense_features),
        torch.Generator().manual_seed(0),
    ).state_dict()
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], msg=name)
        assert name.startswith("standardise.") or not torch.equal(weights[0][name], start[name]), (
            name
        )
    assert step.tables_s > 0


def test_table_sizes_grow_to_the_largest() -> None:
    assert table_sizes(5) == [5]
    assert table_sizes(1000) == [64, 256, 1000]


def test_system_caches(tmp_path: Path) -> None:
    caches = [
        ("1", "Data", "48K"),
        ("1", "Instruction", "32K"),
        ("2", "Unified", "1M"),
        ("3", "Unified", "512"),
    ]
    for k, (level, kind, size) in enumerate(caches):
        (tmp_path / f"index{k}").mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (tmp_path / f"index{k}" / name).write_text(text + "\n")
    assert system_caches(tmp_path) == {"L1": 48 << 10, "L2": 1 << 20, "L3": 512}
    assert system_caches(tmp_path / "none") == {}
