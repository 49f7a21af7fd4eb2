"""Ensembles: the members are those of runs with other seeds, and predict as one model."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.bundle_layout import HISTORY, MANIFEST, MODEL, WEIGHTS, weights_name
from common.checked_json import write_checked_json
from common.config.loading import ConfigError
from common.config.params import Params
from common.files import DataError, read_json, sha256_file
from features.encode.feature_state import FeatureState
from tests.factories.features import training_params, write_features
from tests.factories.models import log_lines, make_project, read_split
from training import stage
from training.ensemble import is_trained
from training.evaluation.stage import evaluate
from training.inference.bundle import load_bundle
from training.inference.predict import predict
from training.inference.score import score
from training.loop.checkpoint import LAST, Checkpoints, checkpoints_of
from training.loop.interrupt import report_on_interrupt
from training.loop.training_curves import read_history
from training.models.ensemble import Ensemble
from training.promotion.smoke_test import smoke_test
from training.stage import check_memory, train

DAYS = {"train": [200, 121], "valid": [101], "test": [50]}


def files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundles of an ensemble of three, and of single runs with its seeds."""
    root = tmp_path_factory.mktemp("trained")
    bundles = {}
    for name, values in {
        "ensemble": {"seed": 5, "ensemble_size": 3},
        **{f"seed {seed}": {"seed": seed} for seed in (5, 6, 7)},
    }.items():
        write_features(root / name, DAYS)
        train(training_params(epochs=2, weight_averaging=True, **values), root / name)
        assert not list((root / name / "runs/checkpoints").iterdir())
        bundles[name] = root / name / MODEL
    return bundles


def test_the_members_are_the_models_of_the_seeds(trained: dict[str, Path]) -> None:
    singles = [trained[f"seed {seed}"] for seed in (5, 6, 7)]
    for number, single in enumerate(singles):
        weights = (trained["ensemble"] / weights_name(number)).read_bytes()
        assert weights == (single / WEIGHTS).read_bytes()
    assert sorted(path.name for path in trained["ensemble"].glob("weights*")) == [
        "weights.safetensors",
        "weights_2.safetensors",
        "weights_3.safetensors",
    ]
    history = read_history(trained["ensemble"] / HISTORY)
    of_singles = [
        read_history(single / HISTORY).with_columns(member=pl.lit(number, pl.Int64))
        for number, single in enumerate(singles, start=1)
    ]
    assert history.equals(pl.concat(of_singles))
    assert history["member"].unique().to_list() == [1, 2, 3]


def test_only_an_ensemble_has_a_number_of_members(trained: dict[str, Path]) -> None:
    """So a bundle of one model is laid out as before."""
    assert read_json(trained["ensemble"] / MANIFEST)["num_members"] == 3
    assert "num_members" not in read_json(trained["seed 5"] / MANIFEST)
    assert load_bundle(trained["seed 5"]).manifest.num_members == 1
    assert (trained["seed 5"] / HISTORY).read_text().startswith("step,split,")


def test_a_score_is_the_sigmoid_of_the_mean_logit(trained: dict[str, Path]) -> None:
    rows = read_split(trained["ensemble"].parents[1], "test")
    logits = []
    for seed in (5, 6, 7):
        single = score(load_bundle(trained[f"seed {seed}"]), rows).astype(np.float64)
        logits.append(np.log(single / (1 - single)))
    expected = 1 / (1 + np.exp(-np.mean(logits, axis=0)))
    bundle = load_bundle(trained["ensemble"])
    assert isinstance(bundle.model, Ensemble)
    np.testing.assert_allclose(score(bundle, rows), expected, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in bundle.model.parameters())


def test_an_ensemble_is_evaluated_and_served_as_one_model(tmp_path: Path) -> None:
    small = make_project(tmp_path, log_lines(1400, seed=1))
    values = small.model_dump(by_alias=True)
    values["train"] |= {"ensemble_size": 2, "epochs": 1, "accelerator": "cpu", "validations": 3}
    params = Params.model_validate(values)
    train(params, tmp_path)
    evaluate(params, tmp_path)
    evaluated = pl.read_parquet(tmp_path / "artifacts/evaluation/scores.parquet")
    rows = read_split(tmp_path, "test")
    bundle = load_bundle(tmp_path / MODEL)
    of_test = evaluated.filter(pl.col("split") == "test")["score"].to_numpy()
    assert np.array_equal(of_test, score(bundle, rows))
    curve = pl.read_csv(tmp_path / "artifacts/evaluation/plots/valid.csv")
    history = read_history(tmp_path / MODEL / HISTORY).filter(pl.col("split") == "valid")
    assert curve["step"].to_list() == history.filter(pl.col("member") == 1)["step"].to_list()
    first, second = (history.filter(pl.col("member") == k)["loss"].to_numpy() for k in (1, 2))
    np.testing.assert_allclose(curve["loss"].to_numpy(), (first + second) / 2, rtol=1e-9)
    page = (tmp_path / "artifacts/evaluation/report.html").read_text()
    assert "an ensemble of 2," in page
    assert f"{sum(p.numel() for p in bundle.model.parameters()):,}" in page.replace("\u202f", ",")
    assert smoke_test(bundle, tmp_path / MODEL, tmp_path) is None
    predict(tmp_path / MODEL, tmp_path / "log.tsv", tmp_path / "scores.parquet")
    predicted = pl.read_parquet(tmp_path / "scores.parquet")["score"].to_numpy()
    assert np.array_equal(predicted[-len(of_test) :], of_test)


def test_a_member_that_is_trained_is_not_trained_again(
    trained: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A run that ends in its second member resumes there, with the same bytes in the end."""
    params = training_params(epochs=2, weight_averaging=True, seed=5, ensemble_size=3)
    write_features(tmp_path, DAYS)
    seeds = []
    run_trainer = stage.run_trainer

    def end_in_the_second(run: Any) -> None:
        seeds.append(run.params.train.seed)
        run_trainer(run)
        if run.params.train.seed == 6:
            raise RuntimeError("the end")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "run_trainer", end_in_the_second)
        with pytest.raises(RuntimeError, match="the end"):
            train(params, tmp_path)
    assert seeds == [5, 6]
    first, second = (checkpoints_of(params, "cpu", tmp_path).of_member(k) for k in (0, 1))
    assert [path.name for path in first.directory.iterdir()] == ["trained"]
    assert (second.directory / LAST).exists()
    assert not (tmp_path / MODEL).exists()
    capfd.readouterr()
    train(params, tmp_path)
    out = capfd.readouterr().out
    assert "model 1 of 3 has been trained by an earlier run" in out
    assert len(re.findall(r"resumes at step \d+ of", out)) == 1
    # 321 rows in two epochs of three models; the first one was trained before
    percentages = [int(percent) for percent in re.findall(r"train +(\d+) % ", out)]
    assert percentages == sorted(percentages)
    assert percentages[-2:] == [66, 100]
    assert "100 %  1,926 rows" in out
    assert files(tmp_path / MODEL) == files(trained["ensemble"])


@pytest.mark.parametrize("member", [0, 2])
def test_the_line_about_a_member_without_a_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], member: int
) -> None:
    with pytest.raises(SystemExit), report_on_interrupt(Checkpoints(tmp_path).of_member(member)):
        sys.exit(143)
    name = f"model {member + 1} of the ensemble"
    expected = f"there is no checkpoint of {name} yet, so the next run starts with that one\n"
    assert capfd.readouterr().out == f"train     stopped; {expected}"


def damage_weights(trained: Path) -> None:
    data = bytearray((trained / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (trained / WEIGHTS).write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        damage_weights,
        lambda trained: (trained / HISTORY).unlink(),
        lambda trained: (trained / "manifest.json").write_text("{}"),
        lambda trained: (trained / "manifest.json").unlink(),
    ],
    ids=["flipped bit", "no history", "other manifest", "no manifest"],
)
def test_a_damaged_member_is_trained_again(
    tmp_path: Path, damage: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    params = training_params(ensemble_size=2)
    write_features(tmp_path, DAYS)
    checkpoints = checkpoints_of(params, "cpu", tmp_path).of_member(0)
    stage.fit(params, tmp_path, "cpu", checkpoints)
    assert is_trained(checkpoints)
    expected = files(checkpoints.trained)
    damage(checkpoints.trained)
    capfd.readouterr()
    assert not is_trained(checkpoints)
    assert f"{checkpoints.trained} is damaged; the model is trained again" in capfd.readouterr().out
    assert not os.path.lexists(checkpoints.trained)
    stage.fit(params, tmp_path, "cpu", checkpoints)
    assert files(checkpoints.trained) == expected


def test_checkpoints_of_one_member_are_not_those_of_another(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    checkpoints = checkpoints_of(training_params(ensemble_size=2), "cpu", tmp_path)
    first, second = (checkpoints.of_member(member) for member in (0, 1))
    first.write(LAST, {"step": 1})
    second.directory.mkdir()
    shutil.copy(first.directory / LAST, second.directory / LAST)
    assert first.read(LAST)
    with pytest.raises(DataError, match=r"last\.pt: the checkpoint of another run, \w+/member_1"):
        second.read(LAST)


STILL: dict[str, Any] = {
    "dense_optimizer": {"name": "sgd", "lr": 1e-30},
    "embedding_optimizer": {"name": "sgd", "lr": 1e-30},
}


def test_each_member_starts_from_the_same_member_of_the_old_bundle(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    """Without learning, the weights are the old ones."""
    write_features(tmp_path, DAYS)
    start = {"warm_start_from": str(trained["ensemble"]), **STILL}
    train(training_params(ensemble_size=3, seed=40, **start), tmp_path)
    for number in range(3):
        old = load_file(trained["ensemble"] / weights_name(number))
        new = load_file(tmp_path / MODEL / weights_name(number))
        for name, weight in old.items():
            torch.testing.assert_close(new[name], weight, rtol=0, atol=1e-20)
    assert "start/bundle.json" in load_bundle(tmp_path / MODEL).manifest.data


@pytest.mark.parametrize(("name", "has", "size"), [("ensemble", 3, 1), ("seed 5", 1, 2)])
def test_a_warm_start_from_another_number_of_models_is_refused(
    trained: dict[str, Path], tmp_path: Path, name: str, has: int, size: int
) -> None:
    write_features(tmp_path, DAYS)
    params = training_params(ensemble_size=size, warm_start_from=str(trained[name]))
    message = f"train.ensemble_size is {size} now, and the bundle has {has} model"
    with pytest.raises(DataError, match=message):
        train(params, tmp_path)


def test_the_memory_of_all_members_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_features(tmp_path, DAYS)
    state = FeatureState.load(tmp_path / "artifacts/features/state")

    class Memory:
        total = 20_000  # bytes; one model of these parameters has about 12,000

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    check_memory(training_params(), state)
    with pytest.raises(ConfigError, match=r"make train\.ensemble_size \(3\), model\.embedding_dim"):
        check_memory(training_params(ensemble_size=3), state)


def rewrite(directory: Path, **values: Any) -> None:
    manifest = read_json(directory / MANIFEST)
    del manifest["sha256"]
    write_checked_json(directory / MANIFEST, manifest | values)


@pytest.mark.parametrize("number", [4, 10**15])
def test_a_bundle_with_fewer_weights_than_members_is_refused(
    trained: dict[str, Path], tmp_path: Path, number: int
) -> None:
    shutil.copytree(trained["ensemble"], tmp_path / "copy")
    rewrite(tmp_path / "copy", num_members=number)
    with pytest.raises(DataError, match=r"weights_4\.safetensors is missing from the bundle"):
        load_bundle(tmp_path / "copy")


@pytest.mark.parametrize("number", [1, 2])
def test_a_bundle_with_more_weights_than_members_is_refused(
    trained: dict[str, Path], tmp_path: Path, number: int
) -> None:
    shutil.copytree(trained["ensemble"], tmp_path / "copy")
    rewrite(tmp_path / "copy", num_members=number)
    words = rf"weights_{number + 1}\.safetensors: weights of a further model, but num_members in"
    with pytest.raises(DataError, match=words):
        load_bundle(tmp_path / "copy")


@pytest.mark.parametrize("number", [0, -1, "2", 1.5, None])
def test_an_odd_number_of_members_is_refused(
    trained: dict[str, Path], tmp_path: Path, number: Any
) -> None:
    shutil.copytree(trained["ensemble"], tmp_path / "copy")
    rewrite(tmp_path / "copy", num_members=number)
    with pytest.raises(DataError, match="num_members"):
        load_bundle(tmp_path / "copy")


def test_the_weights_of_every_member_are_checked(trained: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained["ensemble"], copy)
    path = copy / weights_name(2)
    tensors = load_file(path)
    tensors["top.0.bias"][0] = float("nan")
    save_file(tensors, path)
    files_of_copy = read_json(copy / MANIFEST)["files"]
    rewrite(copy, files=files_of_copy | {path.name: sha256_file(path)})
    with pytest.raises(DataError, match=r"weights_3\.safetensors: tensor top\.0\.bias: value nan"):
        load_bundle(copy)
