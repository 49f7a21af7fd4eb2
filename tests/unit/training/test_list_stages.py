"""The train and evaluate stages on a log with lists, a shared table and sample weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from safetensors.numpy import load

from common.artifact import Artifact
from common.bundle_layout import HISTORY, MODEL, WEIGHTS
from common.config.params import Params
from common.files import DataError, read_json
from common.layout import EVALUATION, FEATURES, SERVING
from features.schema import schema as schemas
from flows.nightly.bundles import find_serving_damage
from serving.serving_bundle import NOT_EXPORTED, find_serving_bundle
from tests.factories.list_logs import schema_of, write_log
from tests.factories.permuted import brute_force
from tests.factories.served_runs import files_of, train_on_threads, with_servers, with_train
from tests.factories.support import make_features, make_params, plain_model
from training.bench.run import bench
from training.compression.compress_model import Steps
from training.compression.stage import compress
from training.evaluation.importance import MAX_ROWS, SEED
from training.evaluation.random_rows import random_rows
from training.evaluation.stage import evaluate
from training.export.export_model import export
from training.export.stage import export_stage
from training.inference.bundle import Bundle, load_bundle
from training.inference.predict import predict
from training.inference.score import score
from training.loop.batches import Batch
from training.loop.checkpoint import LAST, checkpoints_of
from training.loop.lightning_module import TrainDLRM
from training.promotion.decide import decide_promotion
from training.stage import prepare, train

NUM_ROWS = 700
TABLES: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "mixed_dim": {"name": "mixed_dim", "alpha": 0.5, "threshold": 8},
    "per_column": {"name": "per_column", "dims": {"viewed": 4, "item": 4, "tags": 0}},
}


def make_log(path: Path, without_weight: slice = slice(0)) -> None:
    """Write rows whose clicks depend on whether the item is in the list of viewed items.

    Args:
        path: The log.
        without_weight: The rows with the sample weight 0.
    """
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(NUM_ROWS):
        viewed = rng.integers(0, 25, rng.integers(0, 5)).tolist()
        item = int(rng.choice(viewed)) if viewed and rng.random() < 0.5 else int(rng.integers(25))
        rows.append(
            {
                "clicked": int(rng.random() < (0.8 if item in viewed else 0.2)),
                "price": float(rng.random()),
                "viewed": viewed,
                "viewed_weights": rng.random(len(viewed)).round(3).tolist(),
                "item": item,
                "tags": [f"t{tag}" for tag in rng.integers(0, 9, rng.integers(0, 3))],
                "codes": [f"{code:x}" for code in rng.integers(0, 30, rng.integers(0, 3))],
                "weight": float(rng.integers(0, 3)),
            }
        )
    for row in rows[without_weight]:
        row["weight"] = 0.0
    write_log(path, rows, "json_lines")


@pytest.fixture
def schema_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the schema `lists`, which `load_schema` finds."""
    folder = tmp_path / "schemas"
    folder.mkdir()
    values = schema_of("json_lines").model_dump(mode="json", by_alias=True, exclude_none=True)
    (folder / "lists.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(schemas, "SCHEMAS", folder)
    return folder


def params_of(root: Path, tables: str = "full", **options: Any) -> Params:
    model = {"embedding_dim": 8, "bottom_mlp": [8], "top_mlp": [8], "tables": TABLES[tables]}
    options = {"logger": "none", "batch_size": 64, "epochs": 2, "validations": 2} | options
    return make_params(
        data__source=str(root / "log.jsonl"),
        data__schema="lists",
        features__min_count=1,
        model=plain_model(**model),
        **{f"train__{name}": value for name, value in options.items()},
    )


@pytest.fixture
def root(tmp_path: Path, schema_folder: Path) -> Path:
    """A project with features."""
    make_log(tmp_path / "log.jsonl")
    make_features(tmp_path, params_of(tmp_path))
    return tmp_path


@pytest.mark.parametrize("tables", TABLES)
def test_parameter_servers_train_the_same_model_of_lists(root: Path, tables: str) -> None:
    params = with_train(params_of(root, tables), threads=1)
    train(params, root)
    of_one_device = files_of(root)
    train_on_threads(with_servers(params, 2, 2), root)
    of_servers = files_of(root)
    assert of_servers[HISTORY] == of_one_device[HISTORY]
    expected, found = (load(files[WEIGHTS]) for files in (of_one_device, of_servers))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("tables", TABLES)
def test_a_model_of_lists_is_compressed(root: Path, tables: str, tmp_path: Path) -> None:
    """The scores of int8 are near those of float32, and do not depend on the other rows."""
    params = params_of(root, tables)
    train(params, root)
    rows = pl.concat(
        [pl.read_parquet(path) for path in sorted((root / FEATURES / "test").glob("*.parquet"))]
    )
    expected = score(load_bundle(root / MODEL), rows)
    order = np.random.default_rng(3).permutation(rows.height)
    for steps, limit in ((Steps(8), 0.01), (Steps(4, rows=0.4, units=0.25), 0.3)):
        compress(root / MODEL, tmp_path / "small", steps, root)
        bundle = load_bundle(tmp_path / "small")
        scores = score(bundle, rows)
        assert 0 < np.abs(scores - expected).max() < limit
        assert np.array_equal(score(bundle, rows[order]), scores[order])
    predict(tmp_path / "small", root / "log.jsonl", tmp_path / "scores.parquet")
    predicted = pl.read_parquet(tmp_path / "scores.parquet")["score"]
    assert np.array_equal(predicted.tail(rows.height).to_numpy(), scores)


@pytest.mark.parametrize("tables", TABLES)
def test_a_model_of_lists_is_trained_evaluated_and_served(root: Path, tables: str) -> None:
    """The run has averaged weights and embedding resets, as params.yaml has."""
    params = params_of(root, tables)
    train(params, root)
    evaluate(params, root)
    metrics = read_json(root / EVALUATION / "metrics.json", "")["test"]
    bundle = load_bundle(root / MODEL)
    rows = pl.concat(
        [pl.read_parquet(path) for path in sorted((root / FEATURES / "test").glob("*.parquet"))]
    )
    weights, labels = rows["weight"].to_numpy().astype(float), rows["clicked"].to_numpy()
    scores = score(bundle, rows).astype(float)
    losses = -np.log(np.where(labels == 1, scores, 1 - scores))
    assert metrics["logloss"] == pytest.approx(np.average(losses, weights=weights), rel=1e-6)
    assert metrics["mean_score"] == pytest.approx(np.average(scores, weights=weights), rel=1e-6)
    assert metrics["logloss"] != pytest.approx(losses.mean(), rel=1e-4)
    assert_importance(bundle, root)
    shuffled = score(bundle, rows.sample(fraction=1, shuffle=True, seed=1)).astype(float)
    assert sorted(shuffled) == sorted(scores)  # a score depends on its row alone
    predict(root / MODEL, root / "log.jsonl", root / "scores.parquet")
    served = pl.read_parquet(root / "scores.parquet")["score"].to_numpy()
    assert len(served) == NUM_ROWS
    assert np.array_equal(served[-len(scores) :], score(bundle, rows))
    assert "comparison" not in decide_promotion(params, root, root / MODEL).reasons


def assert_importance(bundle: Bundle, root: Path) -> None:
    """Check importance.csv: whole lists move, with their weights, and rows are weighted."""
    schema = bundle.state.schema
    features = Artifact.open(root / FEATURES)
    rows = random_rows(features, schema, "valid", MAX_ROWS, SEED)
    found = pl.read_csv(root / EVALUATION / "plots/importance.csv")
    dims = bundle.manifest.params["model"]["tables"].get("dims", {})
    kept = [name for name in schema.categorical_features if dims.get(name) != 0]
    assert sorted(found["column"]) == sorted([*schema.dense_features, *kept])
    for column, _, *rise in found.iter_rows():
        assert rise == pytest.approx(brute_force(bundle.model, rows, schema, [column]), abs=1e-6)


class Stopped(Exception):  # noqa: N818
    """The run is interrupted."""


def test_a_run_that_resumes_gives_the_same_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "max_grad_norm": 0.5}
    params = params_of(root, checkpoint_minutes=1e-9, **options)
    train(params, root)
    expected = (root / MODEL / WEIGHTS).read_bytes()
    step = TrainDLRM.training_step

    def stop_in_the_second_epoch(module: TrainDLRM, batch: Batch, batch_idx: int) -> None:
        if module.current_epoch == 1 and batch_idx == 2:
            raise Stopped
        step(module, batch, batch_idx)

    monkeypatch.setattr(TrainDLRM, "training_step", stop_in_the_second_epoch)
    with pytest.raises(Stopped):
        train(params, root)
    assert (checkpoints_of(params, "cpu", root).directory / LAST).exists()
    monkeypatch.undo()
    monkeypatch.setattr(schemas, "SCHEMAS", root / "schemas")
    train(params, root)
    assert (root / MODEL / WEIGHTS).read_bytes() == expected


def test_a_warm_start_begins_with_the_tables_of_the_bundle(root: Path) -> None:
    train(params_of(root, epochs=1), root)
    first = root / "first"
    (root / MODEL).rename(first)
    params = params_of(root, epochs=1, warm_start_from=str(first))
    run = prepare(params, root, "cpu", checkpoints_of(params, "cpu", root))
    old = load_bundle(first).model.state_dict()
    for name, weight in run.module.model.state_dict().items():
        assert np.array_equal(weight.numpy(), old[name].numpy()), name


def test_a_model_of_lists_is_distilled(root: Path) -> None:
    """Rows with lists keep their scores, and sample weights count as without teachers."""
    train(params_of(root), root)
    (root / MODEL).rename(root / "teacher")
    distill = {"teachers": ["teacher"], "weight": 0.5}
    params = params_of(root, distill=distill, shuffle_rows=200)
    run = prepare(params, root, "cpu", checkpoints_of(params, "cpu", root))
    rows = pl.concat(
        [pl.read_parquet(path) for path in sorted((root / FEATURES / "train").glob("*.parquet"))]
    )
    scores = score(load_bundle(root / "teacher"), rows)
    score_of_price = dict(zip(rows["price"].to_list(), scores.tolist(), strict=True))
    assert len(score_of_price) == rows.height  # prices are distinct
    for step in range(3):
        batch = run.data.batch_of_step(step).rows
        found = batch.teacher_scores
        assert found is not None
        assert found.tolist() == [score_of_price[price] for price in batch.dense[:, 0].tolist()]
    train(params, root)
    first = (root / MODEL / WEIGHTS).read_bytes()
    train(params, root)
    assert (root / MODEL / WEIGHTS).read_bytes() == first


def test_the_traces_of_bench_refuse_lists_by_name(root: Path) -> None:
    with pytest.raises(DataError, match=r"clickmill bench: viewed has lists of values or shares"):
        bench(params_of(root), root, "random", 100)


SPLIT_ENDS = {"train": 600, "valid": 650, "test": 700}  # the last 50 rows each


@pytest.mark.parametrize("split", SPLIT_ENDS)
def test_weights_that_are_all_0_are_refused(
    tmp_path: Path, schema_folder: Path, split: str
) -> None:
    first = 0 if split == "train" else SPLIT_ENDS[split] - 50
    make_log(tmp_path / "log.jsonl", without_weight=slice(first, SPLIT_ENDS[split]))
    params = params_of(tmp_path, epochs=1)
    make_features(tmp_path, params)
    with pytest.raises(DataError, match=f"{split}: every sample weight, column weight, is 0; give"):
        train(params, tmp_path)
    assert not (tmp_path / MODEL).exists()


@pytest.mark.parametrize("split", ["valid", "test"])
def test_weights_that_became_0_after_the_training_are_refused(
    tmp_path: Path, schema_folder: Path, split: str
) -> None:
    params = params_of(tmp_path, epochs=1)
    make_log(tmp_path / "log.jsonl")
    make_features(tmp_path, params)
    train(params, tmp_path)
    make_log(
        tmp_path / "log.jsonl", without_weight=slice(SPLIT_ENDS[split] - 50, SPLIT_ENDS[split])
    )
    make_features(tmp_path, params)
    with pytest.raises(DataError, match=f"{split}: every sample weight, column weight, is 0; give"):
        evaluate(params, tmp_path)


def test_rows_of_one_label_that_count_are_refused(tmp_path: Path, schema_folder: Path) -> None:
    make_log(tmp_path / "log.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rows = [row | {"weight": row["weight"] * (1 - row["clicked"])} for row in rows]
    write_log(tmp_path / "log.jsonl", rows, "json_lines")
    params = params_of(tmp_path, epochs=1)
    make_features(tmp_path, params)
    with pytest.raises(DataError, match="weight above 0, column weight, has the label 0, so there"):
        train(params, tmp_path)


def test_a_model_of_lists_is_not_exported_and_the_stage_says_so(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = params_of(root, epochs=1)
    train(params, root)
    with pytest.raises(DataError, match=r"its columns viewed, tags, codes have lists"):
        export(root / MODEL, root / "runs/serving", params.export, root)
    export_stage(params.export, root)
    assert "cannot be exported yet" in caplog.text
    assert [path.name for path in (root / SERVING).iterdir()] == [NOT_EXPORTED]
    with pytest.raises(DataError, match=r"no serving bundle here: model \w{12}: its columns"):
        find_serving_bundle(root / SERVING)
    version = load_bundle(root / MODEL).version
    assert find_serving_damage(root / SERVING, version) is None
    assert find_serving_damage(root / SERVING, "0123456789ab") is not None
    export_stage(params.export, root)  # in place of the reason
