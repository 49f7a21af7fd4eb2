"""Warm start: training begins with the weights of a bundle, and vocabularies have grown since."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.artifact import Artifact, write_manifest
from common.bundle_layout import MANIFEST, MODEL, WEIGHTS
from common.checked_json import write_checked_json
from common.config.loading import ConfigError
from common.files import DataError, read_json, sha256_file
from common.layout import FEATURES
from features.encode.feature_state import NUM_RESERVED, FeatureState
from features.schema.schema import load_schema
from tests.factories.features import CARDINALITY, training_params, write_features
from tests.factories.models import log_lines, make_bundle, make_project, small_params
from tests.factories.ranks import on_ranks, quietly
from training.inference.bundle import load_bundle
from training.loop.batches import Batches
from training.loop.checkpoint import checkpoints_of, run_key
from training.loop.warm_start import WarmStart
from training.models.factory import build_model, inputs_of
from training.stage import fit, train

DAYS = {"train": [200, 121], "valid": [101], "test": [50]}
GROWN = CARDINALITY + 9
QR = {
    "name": "quotient_remainder",
    "operation": "mult",
    "collisions": 4,
    "threshold": CARDINALITY - 1,
}
STILL: dict[str, Any] = {
    "dense_optimizer": {"name": "sgd", "lr": 1e-30},
    "embedding_optimizer": {"name": "sgd", "lr": 1e-30},
}


def grow(root: Path, cardinality: int = GROWN, first: int = 0) -> FeatureState:
    """Replace the feature state by one with `cardinality` ids; its values begin with `first`."""
    schema = load_schema("criteo")
    values = pl.Series("value", range(first, first + cardinality - NUM_RESERVED), dtype=pl.UInt32)
    state = FeatureState(schema, "frequency", dict.fromkeys(schema.categorical, values), {})
    shutil.rmtree(root / "artifacts/features/state")
    state.save(root / FEATURES / "state")
    write_manifest(root / FEATURES, {})
    return state


PER_COLUMN = {"name": "per_column", "dims": {"C2": 0}}


@pytest.fixture(
    scope="module",
    params=[{}, {"tables": QR}, {"tables": PER_COLUMN}],
    ids=["full", "quotient_remainder", "per_column"],
)
def champion(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """A trained model in champion/, and features whose vocabularies have grown since."""
    root = tmp_path_factory.mktemp("champion")
    write_features(root, DAYS)
    train(training_params({**request.param, "standardise": True}), root)
    (root / "artifacts/model").rename(root / "champion")
    grow(root)
    return {**request.param, "standardise": True}, root


def test_known_rows_keep_their_weights_and_new_rows_have_initial_ones(
    champion: tuple[dict[str, Any], Path],
) -> None:
    parts, root = champion
    params = training_params(parts)
    state = FeatureState.load(root / "artifacts/features/state")
    made = [
        build_model(
            params.model,
            state.cardinalities,
            len(state.schema.dense_features),
            torch.Generator(),
            inputs=inputs_of(state.schema),
        )
        for _ in range(2)
    ]
    WarmStart(root / "champion", params.model, state).load_weights(made[0])
    known = load_file(root / "champion/weights.safetensors")
    found, new = (model.state_dict() for model in made)
    assert found.keys() == known.keys()
    for name, weight in found.items():
        if not name.startswith("embeddings.tables."):
            assert torch.equal(weight, known[name]), name
    before = build_model(
        params.model,
        [CARDINALITY] * len(state.cardinalities),
        1,
        torch.Generator(),
        inputs=inputs_of(state.schema),
    )
    for g, (tables, of_champion) in enumerate(
        zip(made[0].embeddings.tables, before.embeddings.tables, strict=True)
    ):
        name = f"embeddings.tables.{g}.weight"
        for (start, end), (known_start, known_end) in zip(
            tables.spans, of_champion.spans, strict=True
        ):
            middle = start + known_end - known_start
            assert torch.equal(found[name][start:middle], known[name][known_start:known_end])
            assert torch.equal(found[name][middle:end], new[name][middle:end])
            assert not torch.equal(found[name][start:middle], new[name][start:middle])


def test_full_and_composed_tables_of_one_model_keep_their_weights(tmp_path: Path) -> None:
    """Some columns have more values than the threshold, others have fewer."""
    make_project(tmp_path, log_lines(1400, 1))
    tables = {"name": "quotient_remainder", "operation": "mult", "collisions": 4, "threshold": 50}
    params = small_params(tmp_path / "log.tsv", tables=tables)
    make_bundle(tmp_path, params)
    state = FeatureState.load(tmp_path / FEATURES / "state")
    model = build_model(
        params.model, state.cardinalities, len(state.schema.dense_features), torch.Generator()
    )
    assert len(model.embeddings.tables) == 2
    WarmStart(tmp_path / MODEL, params.model, state).load_weights(model)
    known = load_file(tmp_path / MODEL / "weights.safetensors")
    assert all(torch.equal(weight, known[name]) for name, weight in model.state_dict().items())


def test_each_epoch_begins_with_the_tables_of_the_champion(
    champion: tuple[dict[str, Any], Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With the embedding reset, every epoch begins with the same tables as the first."""
    parts, root = champion
    begun = []
    load_tables = WarmStart.load_tables

    def spy(self: WarmStart, model: Any) -> None:
        load_tables(self, model)
        begun.append([tables.weight.clone() for tables in model.embeddings.tables])

    monkeypatch.setattr(WarmStart, "load_tables", spy)
    params = training_params(
        parts, warm_start_from="champion", epochs=3, reset_embeddings_each_epoch=True
    )
    train(params, root)
    assert len(begun) == 3
    assert all(
        torch.equal(a, b) for later in begun[1:] for a, b in zip(begun[0], later, strict=True)
    )
    start = load_bundle(root / "artifacts/model").manifest.data["start/bundle.json"]
    assert f"starts from model {start[:12]}" in capfd.readouterr().out
    assert start == sha256_file(root / "champion/bundle.json")


def fit_rank(params: Any, root: Path) -> None:
    """Run one rank's part of the train stage."""
    quietly(root, "output.txt")
    fit(params, root, "cpu", checkpoints_of(params, "cpu", root))


def test_sharded_tables_grow_as_well(champion: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """Without learning, the bundles of one device and of three ranks have the same tables."""
    pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")
    parts, root = champion
    found = []
    for devices in (1, 3):
        place = tmp_path / str(devices)
        shutil.copytree(root / "artifacts/features", place / "artifacts/features")
        shutil.copytree(root / "champion", place / "champion")
        params = training_params(
            parts,
            warm_start_from="champion",
            devices=devices,
            parallel="model",
            epochs=2,
            reset_embeddings_each_epoch=True,
            **STILL,
        )
        on_ranks(devices, fit_rank, params, place)
        found.append(load_file(place / "artifacts/model/weights.safetensors"))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=0, atol=1e-20)
    assert len(found[0]["embeddings.tables.0.weight"]) > len(
        load_file(root / "champion/weights.safetensors")["embeddings.tables.0.weight"]
    )


def test_a_model_that_does_not_fit_is_refused(
    champion: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    parts, root = champion
    remedy = "; to train from scratch, set train.warm_start_from in params.yaml to null"
    state = FeatureState.load(root / "artifacts/features/state")
    with pytest.raises(
        DataError, match=f"champion: model.standardise is False now, and was True{remedy}"
    ):
        WarmStart(root / "champion", training_params({**parts, "standardise": False}).model, state)
    WarmStart(
        root / "champion",
        training_params({**parts, "loss": {"name": "focal", "gamma": 1, "alpha": 0.5}}).model,
        state,
    )
    shutil.copytree(root / "artifacts/features/state", tmp_path / "artifacts/features/state")
    for other in (grow(tmp_path, first=1), grow(tmp_path, cardinality=CARDINALITY - 1)):
        with pytest.raises(DataError, match=f"champion: ids of C1 have changed since: .*{remedy}"):
            WarmStart(root / "champion", training_params(parts).model, other)
    shutil.copytree(root / "champion", tmp_path / "champion")
    (tmp_path / "champion/history.csv").write_text("loss\n")
    with pytest.raises(DataError, match=r"history.csv: SHA-256 .* expected by bundle.json"):
        WarmStart(tmp_path / "champion", training_params(parts).model, state)
    with pytest.raises(DataError, match="nothing: no bundle here"):
        WarmStart(tmp_path / "nothing", training_params(parts).model, state)


def without_a_tensor(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["top.0.bias"]


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["top.0.bias"][1] = math.nan


def infinite_row(tensors: dict[str, torch.Tensor]) -> None:
    tensors["embeddings.tables.0.weight"][-1, 2] = math.inf


def without_a_row(tensors: dict[str, torch.Tensor]) -> None:
    name = "embeddings.tables.0.weight"
    tensors[name] = tensors[name][1:].contiguous()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_tensor, r"tensor top\.0\.bias: none found, \[\d+\] expected"),
        (not_a_number, r"tensor top\.0\.bias: value nan at \[1\] is no finite number"),
        (infinite_row, r"tensor embeddings\.tables\.0\.weight, rows from \d+ on: value inf at"),
        (without_a_row, r"tensor embeddings\.tables\.0\.weight: \[\d+, 4\] found, \[\d+, 4\] exp"),
    ],
)
def test_a_start_with_odd_weights_is_refused(
    champion: tuple[dict[str, Any], Path],
    tmp_path: Path,
    damage: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    """The hashes are right: a tensor that is missing would silently keep its initial values."""
    parts, root = champion
    start = Path(shutil.copytree(root / "champion", tmp_path / "champion"))
    tensors = load_file(start / WEIGHTS)
    damage(tensors)
    save_file(tensors, start / WEIGHTS)
    manifest = read_json(start / MANIFEST)
    manifest["files"][WEIGHTS] = sha256_file(start / WEIGHTS)
    write_checked_json(start / MANIFEST, manifest)
    params = training_params(parts)
    state = FeatureState.load(root / "artifacts/features/state")
    model = build_model(
        params.model,
        state.cardinalities,
        len(state.schema.dense_features),
        torch.Generator(),
        inputs=inputs_of(state.schema),
    )
    with pytest.raises(DataError, match=rf"weights\.safetensors: {message}"):
        WarmStart(start, params.model, state).load_weights(model)


def test_an_error_of_a_rank_is_raised_with_the_same_type(tmp_path: Path) -> None:
    """The type matters: a nightly run trains from scratch instead only after a DataError."""
    write_features(tmp_path, DAYS)
    train(training_params({"standardise": True}), tmp_path)
    (tmp_path / "artifacts/model").rename(tmp_path / "champion")
    with pytest.raises(
        DataError,
        match=r"^champion: model.standardise is False now|champion: model.standardise is False now, and was True",
    ):
        train(training_params(warm_start_from="champion", devices=2, parallel="data"), tmp_path)


def test_a_missing_start_or_the_output_of_this_stage_is_refused(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    with pytest.raises(DataError, match="nothing: no bundle here"):
        train(training_params(warm_start_from="nothing"), tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"warm_start_from is \./artifacts/model, which this stage replaces; copy it",
    ):
        train(training_params(warm_start_from="./artifacts/model"), tmp_path)


def test_columns_that_get_other_tables_are_refused(tmp_path: Path) -> None:
    """A column that has grown above the threshold gets composed embeddings."""
    parts = {"tables": QR | {"threshold": CARDINALITY}}
    write_features(tmp_path, DAYS)
    train(training_params(parts), tmp_path)
    with pytest.raises(
        DataError,
        match=r"with these vocabularies model\.tables gives columns other tables; to train from scratch",
    ):
        WarmStart(tmp_path / "artifacts/model", training_params(parts).model, grow(tmp_path))


def test_the_run_key_depends_on_the_start(
    champion: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    _, root = champion
    write_features(tmp_path, DAYS)
    shutil.copytree(root / "champion", tmp_path / "champion")
    keys = [
        run_key(training_params(), "cpu", tmp_path),
        run_key(params := training_params(warm_start_from="champion"), "cpu", tmp_path),
    ]
    (tmp_path / "champion/bundle.json").write_text("another")
    assert len({*keys, run_key(params, "cpu", tmp_path)}) == 3


def test_too_few_days_or_rows_are_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_features(tmp_path, DAYS)
    for last_days, batch_size in ((9, 5000), (1, 20)):
        train(
            training_params(last_days=last_days, batch_size=batch_size, accumulate_grad_batches=2),
            tmp_path,
        )
        out = capfd.readouterr().out
        num_days, num_rows = len(DAYS["train"]), sum(DAYS["train"])
        assert (f"train.last_days is 9, but there are only {num_days} training days" in out) == (
            last_days == 9
        )
        assert (
            f"one step per epoch: a step takes 10,000 rows (train.batch_size times accumulate_grad_batches), and there are {num_rows}"
            in out
        ) == (last_days == 9)


def test_last_days_selects_the_last_training_days(tmp_path: Path) -> None:
    schema = write_features(tmp_path, {"train": [70, 20, 30], "valid": [9], "test": [9]})
    for last_days, num_rows in ((1, 30), (2, 50), (3, 120), (9, 120), (None, 120)):
        batches = Batches(
            Artifact.open(tmp_path / FEATURES).paths_in("train"),
            schema,
            batch_size=1000,
            last_days=last_days,
        )
        rows = next(batches.steps(0, 1)).rows
        assert (rows.dense[:, -1] * 1000).round().tolist() == list(range(120 - num_rows, 120))
