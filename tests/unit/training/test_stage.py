"""The train stage: learning, divergence, clipping, early stopping, loggers, and its errors."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits

from common.artifact import Artifact, write_manifest
from common.config.loading import ConfigError, check
from common.config.model import Model
from common.files import DataError, read_json
from common.layout import FEATURES
from features.encode.feature_state import FeatureState
from tests.factories.features import CARDINALITY, training_params, write_features
from training.inference.bundle import load_bundle
from training.kernels import choice, compiler
from training.loop.batches import Batches
from training.loop.checkpoint import Checkpoints
from training.models.factory import build_model
from training.stage import check_parallel, prepare, train

DAYS = {"train": [400, 300], "valid": [200], "test": [50]}


def history(root: Path) -> list[dict[str, str]]:
    with (root / "artifacts/model/history.csv").open() as file:
        return list(csv.DictReader(file))


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_run_learns_and_keeps_its_best_weights(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The rates are so high that the validation loss rises; the bundle has the best weights."""
    schema = write_features(tmp_path, DAYS)
    train(
        training_params(epochs=8, dense_optimizer={"name": "adam", "lr": 0.05}, validations=15),
        tmp_path,
    )
    points = history(tmp_path)
    valid = [float(point["loss"]) for point in points if point["split"] == "valid"]
    assert [int(point["step"]) for point in points] == sorted(
        int(point["step"]) for point in points
    )
    assert points[-1]["split"] == "valid"
    assert int(points[-1]["step"]) == 8 * 11
    assert min(valid) < 0.6 < valid[-1]

    model = load_bundle(tmp_path / "artifacts/model").model
    files = Artifact.open(tmp_path / FEATURES).paths_in("valid")
    ((rows, _),) = Batches(files, schema, batch_size=200).steps(0, 1)
    assert binary_cross_entropy_with_logits(
        model(rows.dense, rows.ids), rows.labels
    ).item() == pytest.approx(min(valid), abs=2e-6)

    out, err = capfd.readouterr()
    assert f"train     validation at step 88: loss {valid[-1]:.4f}, accuracy " in out
    assert "train     100 %  5,600 rows" in out
    assert all(line.startswith("train ") for line in out.splitlines())
    assert err == ""
    assert read_json(tmp_path / "runs/timings/train.json")["num_rows"] == 8 * 700
    assert list((tmp_path / "runs/tensorboard").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("dense", ["sgd", "adagrad", "adam"])
@pytest.mark.parametrize("tables", ["sgd", "rowwise_adagrad"])
def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, dense: str, tables: str) -> None:
    params = training_params(
        dense_optimizer={"name": dense, "lr": 0.01}, embedding_optimizer={"name": tables, "lr": 0.1}
    )
    bundles = []
    for name in ("one", "two"):
        write_features(tmp_path / name, DAYS)
        train(params, tmp_path / name)
        bundles.append(files(tmp_path / name / "artifacts/model"))
    assert bundles[0] == bundles[1]
    write_features(tmp_path / "other", DAYS)
    train(training_params(seed=2, dense_optimizer={"name": dense, "lr": 0.01}), tmp_path / "other")
    assert (
        files(tmp_path / "other/artifacts/model")["weights.safetensors"]
        != bundles[0]["weights.safetensors"]
    )


def test_divergence_names_step_and_rates_and_leaves_no_model(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    with pytest.raises(
        ConfigError,
        match=r"train loss (nan|inf) at step \d+ of 11, .*train.dense_optimizer.lr 1e\+38.*warmup_steps",
    ):
        train(training_params(dense_optimizer={"name": "sgd", "lr": 1e38}), tmp_path)
    assert not (tmp_path / "artifacts/model").exists()


def test_the_step_that_diverged_is_saved(tmp_path: Path) -> None:
    """A row has a NaN. The error names its step; the saved rows and weights give the loss again."""
    schema = write_features(tmp_path, DAYS)
    spoil(tmp_path, schema.dense[0], 200)
    # Rows 192 to 223 are step 7.
    params = training_params(shuffle_rows=0, epochs=2, accumulate_grad_batches=2, batch_size=16)
    with pytest.raises(
        ConfigError,
        match=r"train loss nan at step 7 of 44, .*the weights as of step 6 are in runs/diverged",
    ):
        train(params, tmp_path)
    rows = load_file(tmp_path / "runs/diverged/batch.safetensors")
    assert torch.equal(
        (rows["dense"][:, -1] * 1000).round().int(), torch.arange(192, 224, dtype=torch.int32)
    )
    state = load_file(tmp_path / "runs/diverged/state.safetensors")
    assert state["optimizer.0.step"] == 6
    model = build_model(
        params.model, [CARDINALITY] * len(schema.categorical), len(schema.dense), torch.Generator()
    )
    weights = {
        name.removeprefix("model."): value
        for name, value in state.items()
        if name.startswith("model.")
    }
    model.load_state_dict(weights)
    finite = binary_cross_entropy_with_logits(
        model(rows["dense"], rows["ids"]), rows["labels"], reduction="none"
    ).isfinite()
    assert finite.tolist() == [number != 200 for number in range(192, 224)]
    assert torch.isfinite(torch.cat([value.flatten() for value in state.values()])).all()


@pytest.mark.parametrize(
    "implementation",
    [
        "pytorch",
        "onednn",
        pytest.param(
            "compiled",
            marks=pytest.mark.skipif(
                compiler.library() is None, reason="no kernels for this CPU, or no C++ compiler"
            ),
        ),
    ],
)
def test_a_nan_is_found_at_its_step_with_each_implementation(
    tmp_path: Path, implementation: choice.Layers
) -> None:
    """ReLUs follow. The batch and the layer are so large that oneDNN computes the products."""
    schema = write_features(tmp_path, DAYS | {"train": [1200]})
    spoil(tmp_path, schema.dense[0], 200)
    params = training_params(batch_size=1100, validations=1)
    params = params.model_copy(
        update={"model": params.model.model_copy(update={"bottom_mlp": [128]})}
    )
    operators: choice.Operators = "compiled" if implementation == "compiled" else "pytorch"
    with (
        choice.forced(choice.Implementations(operators, implementation)),
        pytest.raises(ConfigError, match=r"training diverged: train loss nan at step 1 of 2"),
    ):
        train(params, tmp_path)
    assert not (tmp_path / "artifacts/model").exists()


@pytest.mark.parametrize(
    "parts",
    [
        {"embedding_dim": 10**10},
        {"bottom_mlp": [10**10]},
        {"top_mlp": [10**9, 10**9]},
        {"interaction": {"name": "cross", "layers": 10**18, "rank": None}},
    ],
    ids=str,
)
def test_a_model_larger_than_the_memory_is_refused_before_it_takes_any(
    tmp_path: Path, parts: dict[str, Any]
) -> None:
    write_features(tmp_path, DAYS)
    params = training_params()
    model = check(Model, params.model.model_dump() | parts, Path("params.yaml"))
    with pytest.raises(ConfigError, match=r"the model has [\d,]+ GB of weights, and this machine"):
        train(params.model_copy(update={"model": model}), tmp_path)


def spoil(root: Path, column: str, row: int) -> None:
    """Replace the value of a column in a row of the first day by NaN."""
    path = root / FEATURES / "train/day_00.parquet"
    values = polars.read_parquet(path).to_dict(as_series=False)
    values[column][row] = float("nan")
    polars.DataFrame(values, schema=polars.read_parquet_schema(path)).write_parquet(path)
    write_manifest(root / FEATURES, {})


@pytest.mark.parametrize("tables", ["sgd", "rowwise_adagrad"])
def test_accumulated_batches_are_one_batch(tmp_path: Path, tables: str) -> None:
    """The batches of a step have common ids, and the last step of an epoch has fewer rows."""
    results = []
    for name, sizes in (
        ("one", {"batch_size": 60}),
        ("parts", {"batch_size": 15, "accumulate_grad_batches": 4}),
    ):
        write_features(tmp_path / name, DAYS)
        optimizers = {
            "dense_optimizer": {"name": "sgd", "lr": 0.1},
            "embedding_optimizer": {"name": tables, "lr": 0.1},
        }
        train(training_params(epochs=2, **optimizers, **sizes), tmp_path / name)
        results.append(
            (
                load_file(tmp_path / name / "artifacts/model/weights.safetensors"),
                history(tmp_path / name),
            )
        )
    (one, curve_one), (parts, curve_parts) = results
    for name, weights in one.items():
        torch.testing.assert_close(parts[name], weights, rtol=1e-5, atol=1e-6, msg=name)
    assert [point["step"] for point in curve_parts] == [point["step"] for point in curve_one]


def test_clipping_bounds_a_step(tmp_path: Path) -> None:
    """With plain SGD and a rate of 1, the change of the weights in a step is at most the norm."""
    write_features(tmp_path, DAYS)
    rates = {
        "dense_optimizer": {"name": "sgd", "lr": 1},
        "embedding_optimizer": {"name": "sgd", "lr": 1},
    }
    # The run has two steps.
    params = training_params(batch_size=350, max_grad_norm=0.01, validations=2, **rates)
    state = FeatureState.load(tmp_path / "artifacts/features/state")
    start = build_model(
        params.model, state.cardinalities, len(state.schema.dense), torch.Generator().manual_seed(1)
    ).state_dict()
    train(params, tmp_path)
    end = load_file(tmp_path / "artifacts/model/weights.safetensors")
    length = (
        torch.cat(
            [
                (end[name] - start[name]).flatten()
                for name in end
                if not name.startswith("standardise.")
            ]
        )
        .norm()
        .item()
    )
    assert 0.009 < length <= 0.02


def test_early_stopping(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The run ends after three validations without improvement, with the best weights."""
    rates = {"dense_optimizer": {"name": "adam", "lr": 0.05}}
    for name, more in (("stopped", {"early_stopping_patience": 3}), ("whole", {})):
        write_features(tmp_path / name, DAYS)
        train(training_params(epochs=8, validations=15, **rates, **more), tmp_path / name)
    losses, whole = (
        [float(p["loss"]) for p in history(tmp_path / name) if p["split"] == "valid"]
        for name in ("stopped", "whole")
    )
    assert len(losses) < len(whole)
    assert losses == whole[: len(losses)]
    assert losses.index(min(losses)) == len(losses) - 4
    out = capfd.readouterr().out
    assert out.count("train     100 %") == 1
    stopped = re.search(
        r"train     stops early at step (\d+) of 88: no validation since step (\d+) was better\ntrain      (\d+) %",
        out,
    )
    assert stopped
    steps = [
        int(point["step"]) for point in history(tmp_path / "stopped") if point["split"] == "valid"
    ]
    assert (int(stopped[1]), int(stopped[2])) == (steps[-1], steps[-4])
    assert int(stopped[3]) == 100 * steps[-1] // 88
    assert "ETA" not in out[stopped.end() :].split("\n")[0]


def test_a_run_that_stopped_early_does_not_train_further_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run that is killed before it has written its bundle stops again at the same step."""
    write_features(tmp_path, DAYS)
    params = training_params(
        epochs=8,
        validations=15,
        dense_optimizer={"name": "adam", "lr": 0.05},
        early_stopping_patience=3,
        checkpoint_minutes=1e-9,
    )
    with monkeypatch.context() as patch:
        patch.setattr("training.stage.export", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(params, tmp_path)
    (stopped_at,) = re.findall(r"stops early at step (\d+)", capfd.readouterr().out)
    train(params, tmp_path)
    out = capfd.readouterr().out
    assert f"resumes at step {stopped_at} of 88" in out
    assert f"stops early at step {stopped_at} of 88" in out
    assert "validation at step" not in out
    assert history(tmp_path)[-1]["step"] == stopped_at


def test_a_trainer_takes_other_arguments_and_callbacks(tmp_path: Path) -> None:
    """Lightning's own callbacks find metrics, steps and epochs under the usual names."""
    write_features(tmp_path, DAYS)
    params = training_params(epochs=3, logger="none")
    run = prepare(params, tmp_path, "cpu", Checkpoints(tmp_path / "checkpoints"))
    best = ModelCheckpoint(tmp_path / "own", monitor="valid/loss", filename="{epoch}-{step}")
    stopping = EarlyStopping("valid/loss", patience=1, min_delta=10)
    options = {"max_epochs": 2, "limit_train_batches": 5, "val_check_interval": 1.0, "plugins": []}
    trainer = run.make_trainer([best, stopping], **options)
    trainer.fit(run.module, datamodule=run.data)
    assert (trainer.current_epoch, trainer.global_step) == (2, 10)
    assert stopping.wait_count == 1
    assert [point.step for point in run.module.curves.validations] == [5, 10]
    assert {path.name for path in (tmp_path / "own").iterdir()} <= {
        "epoch=0-step=5.ckpt",
        "epoch=1-step=10.ckpt",
    }
    assert trainer.callback_metrics["valid/loss"].item() == pytest.approx(
        run.module.curves.validations[-1].loss
    )


@pytest.mark.parametrize(
    ("logger", "files"),
    [("tensorboard", "events.out.tfevents.*"), ("csv", "metrics.csv"), ("none", None)],
)
def test_each_logger_writes_its_own_files(tmp_path: Path, logger: str, files: str | None) -> None:
    write_features(tmp_path, DAYS)
    train(training_params(logger=logger), tmp_path)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"timings", "checkpoints"} | (
        {logger} if files else set()
    )
    if files:
        assert list((tmp_path / "runs" / logger).rglob(files))


def test_a_profile_is_written_and_the_bundle_does_not_change(tmp_path: Path) -> None:
    bundles = []
    for name, profile in (("with", True), ("without", False)):
        write_features(tmp_path / name, DAYS)
        train(training_params(profile=profile, batch_size=32), tmp_path / name)
        bundles.append(files(tmp_path / name / "artifacts/model"))
    assert bundles[0] == bundles[1]
    top = polars.read_csv(tmp_path / "with/runs/profile/top_operators.csv")
    assert top.columns == ["operator", "calls", "cpu_time_us", "cpu_share"]
    assert "(Python, between operators)" in top["operator"]
    assert top["cpu_share"].is_sorted(descending=True)
    assert 0.5 < top["cpu_share"].sum() <= 1
    assert read_json(tmp_path / "with/runs/profile/trace.json")["traceEvents"]


def test_nothing_depends_on_a_global_generator(tmp_path: Path) -> None:
    """Otherwise a checkpoint would have to contain the state of the global generators."""
    bundles = []
    for seed in (1, 2):
        root = tmp_path / str(seed)
        write_features(root, DAYS)
        torch.manual_seed(seed)
        np.random.seed(seed)
        train(training_params(epochs=2), root)
        bundles.append(files(root / "artifacts/model"))
    assert bundles[0] == bundles[1]


def test_missing_and_empty_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest.json not found; run the stage"):
        train(training_params(), tmp_path)
    for split in ("train", "valid"):
        write_features(tmp_path / split, DAYS | {split: []})
        with pytest.raises(DataError, match=rf"artifacts/features/{split}: no rows; .*data.days"):
            train(training_params(), tmp_path / split)


@pytest.mark.parametrize(("seed", "label"), [(0, 0), (3, 1)])
def test_one_class_is_refused(tmp_path: Path, seed: int, label: int) -> None:
    """There is only one training row, so all labels are equal."""
    write_features(tmp_path, DAYS | {"train": [1]}, seed)
    with pytest.raises(DataError, match=f"every label is {label}, .*data.source"):
        train(training_params(), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    with pytest.raises(
        ConfigError,
        match=r"train.accelerator is gpu, but there is no GPU here .*; set it to auto or cpu",
    ):
        train(training_params(accelerator="gpu"), tmp_path)


def test_an_unknown_frequency_bucket_column_is_refused_before_the_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_features(tmp_path, DAYS)
    params = training_params()
    params = params.model_copy(
        update={"evaluate": params.evaluate.model_copy(update={"frequency_bucket_column": "C99"})}
    )
    with pytest.raises(
        ConfigError,
        match=r"evaluate\.frequency_bucket_column: 'C99' is no categorical feature with one value; there are: C1, ",
    ):
        train(params, tmp_path)
    assert "%" not in capfd.readouterr().out


def test_a_threshold_above_every_column_is_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_features(tmp_path, DAYS)
    train(
        training_params({"tables": {"name": "mixed_dim", "alpha": 0.5, "threshold": 1000}}),
        tmp_path,
    )
    assert (
        "no column has more than model.tables.threshold values, 1,000: full tables"
        in capfd.readouterr().out
    )


def test_without_torchrec_one_device_and_data_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """lint-imports checks that no other module imports TorchRec."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_parallel(training_params(devices=1, parallel="hybrid").train)
    check_parallel(training_params(devices=2, parallel="data").train)
    with pytest.raises(
        ConfigError,
        match=r"train.parallel is model, but TorchRec is not installed; run make setup .* or set ",
    ):
        check_parallel(training_params(devices=2, parallel="model").train)
