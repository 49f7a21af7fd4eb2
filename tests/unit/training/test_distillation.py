"""Distillation: the teachers' scores of the training rows, and what is learned from them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from common.artifact import Artifact
from common.bundle_layout import HISTORY, MANIFEST, MODEL, WEIGHTS
from common.config.loading import ConfigError
from common.config.params import Params
from common.files import DataError, read_json, sha256_file
from common.layout import FEATURES
from common.progress import Progress
from features.encode.feature_state import FeatureState
from features.sample.generate import write_sample
from features.schema.check_params import load_checked_params
from features.schema.schema import load_schema
from tests.factories.features import training_params, write_features
from tests.factories.models import read_split
from tests.factories.support import CRITEO, make_features, make_params, plain_model
from training.distillation import TEACHER_SCORES, teacher_scores
from training.inference.bundle import load_bundle
from training.inference.predict import predict
from training.inference.score import score
from training.loop.batches import Batch, Batches
from training.loop.checkpoint import LAST, checkpoints_of, run_key
from training.loop.lightning_module import TrainDLRM
from training.stage import prepare, train

DAYS = {"train": [200, 3, 121], "valid": [101], "test": [50]}
STILL: dict[str, Any] = {
    "dense_optimizer": {"name": "sgd", "lr": 1e-30},
    "embedding_optimizer": {"name": "sgd", "lr": 1e-30},
}
OPTIONS: dict[str, Any] = {"epochs": 2, "logger": "none"}


def distilled(*teachers: str, weight: float = 0.5, **train: Any) -> Params:
    """Return the parameters of a distilled run; the teachers are `first` by default."""
    distill = {"teachers": list(teachers or ("first",)), "weight": weight}
    return training_params(distill=distill, **OPTIONS | train)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, and the teachers `first` and `ensemble`."""
    root = tmp_path_factory.mktemp("taught")
    write_features(root, DAYS)
    for name, values in {
        "first": {"epochs": 4},
        "ensemble": {"seed": 7, "ensemble_size": 2},
    }.items():
        train(training_params(**OPTIONS | values), root)
        (root / MODEL).rename(root / name)
    return root


@pytest.fixture
def root(taught: Path, tmp_path: Path) -> Path:
    """A copy of the features and the teachers."""
    shutil.copytree(taught, tmp_path / "project", ignore=shutil.ignore_patterns("runs"))
    return tmp_path / "project"


def logits(root: Path, name: str, rows: pl.DataFrame) -> np.ndarray:
    """Return the logits that a teacher gives to rows, float64."""
    scores = score(load_bundle(root / name), rows).astype(np.float64)
    return np.asarray(np.log(scores / (1 - scores)))


def scores_of(paths: list[Path]) -> np.ndarray:
    return pl.concat(pl.read_parquet(path) for path in paths)["score"].to_numpy()


def test_the_scores_are_those_of_the_teachers_mean_logit(root: Path) -> None:
    """A teacher that is an ensemble counts as one model."""
    rows = read_split(root, "train")
    paths = teacher_scores(distilled("first"), root)
    assert np.array_equal(scores_of(paths), score(load_bundle(root / "first"), rows))
    expected = (logits(root, "first", rows) + logits(root, "ensemble", rows)) / 2
    found = scores_of(teacher_scores(distilled("first", "ensemble"), root))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-expected)), rtol=1e-5)


def test_the_files_have_the_row_groups_of_the_features(root: Path) -> None:
    paths = teacher_scores(distilled(), root)
    features = Artifact.open(root / FEATURES).paths_in("train")
    assert [path.name for path in paths] == [path.name for path in features]
    for path, of_features in zip(paths, features, strict=True):
        sizes = [
            [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            for metadata in map(pq.read_metadata, (path, of_features))
        ]
        assert sizes[0] == sizes[1]


@pytest.mark.parametrize("shuffle_rows", [0, 90, 1000])
@pytest.mark.parametrize("last_days", [None, 2])
def test_each_row_of_a_batch_has_its_own_score(
    root: Path, shuffle_rows: int, last_days: int | None
) -> None:
    """Whatever the order, the rank and the step; the last dense column is the row's number."""
    rows = read_split(root, "train")
    expected = score(load_bundle(root / "first"), rows)
    files = Artifact.open(root / FEATURES).paths_in("train")
    paths = teacher_scores(distilled(last_days=last_days), root)
    assert len(paths) == (last_days or 3)
    seen = []
    for rank in range(2):
        batches = Batches(
            files,
            load_schema("criteo"),
            batch_size=30,
            shuffle_rows=shuffle_rows,
            last_days=last_days,
            teacher_scores=paths,
            rank=rank,
            world_size=2,
        )
        for batch in batches.steps(2, 2 * batches.steps_per_epoch):
            numbers = (batch.rows.dense[:, -1] * 1000).round().int().numpy()
            assert batch.rows.teacher_scores is not None
            assert np.array_equal(batch.rows.teacher_scores.numpy(), expected[numbers])
            seen += numbers.tolist()
    assert set(seen) == set(range(0 if last_days is None else 200, 324))


def test_only_training_rows_have_scores(root: Path) -> None:
    params = distilled()
    run = prepare(params, root, "cpu", checkpoints_of(params, "cpu", root))
    assert run.data.batch_of_step(0).rows.teacher_scores is not None
    batches: Iterator[Batch] = iter(run.data.val_dataloader())
    assert next(batches).rows.teacher_scores is None
    plain = training_params(**OPTIONS)
    run = prepare(plain, root, "cpu", checkpoints_of(plain, "cpu", root))
    assert run.data.batch_of_step(0).rows.teacher_scores is None


LOSSES: list[dict[str, Any]] = [
    {"name": "bce", "positive_weight": 1, "label_smoothing": 0},
    {"name": "bce", "positive_weight": 3, "label_smoothing": 0.1},
    {"name": "focal", "gamma": 1, "alpha": 0.4},
]


@pytest.mark.parametrize("loss", LOSSES, ids=["bce", "weighted bce", "focal"])
def test_a_weight_that_rounds_to_0_trains_on_the_labels(root: Path, loss: dict[str, Any]) -> None:
    found = []
    for options in ({}, {"distill": {"teachers": ["first"], "weight": 1e-30}}):
        train(training_params({"loss": loss}, **OPTIONS, **options), root)
        found.append(load_bundle(root / MODEL).model.state_dict())
    for name, weights in found[0].items():
        torch.testing.assert_close(found[1][name], weights, rtol=1e-4, atol=1e-5)


def test_the_student_learns_what_the_teachers_say(root: Path) -> None:
    """With the weight 1 its scores come closer to the teacher's than with the labels alone."""
    rows, distances = read_split(root, "test"), []
    expected = score(load_bundle(root / "first"), rows)
    options = {"epochs": 12, "seed": 3}
    for params in (training_params(**OPTIONS | options), distilled(weight=1, **options)):
        train(params, root)
        distances.append(np.abs(score(load_bundle(root / MODEL), rows) - expected).mean())
    assert distances[1] < 0.7 * distances[0]


def test_curves_and_metrics_go_by_the_labels(root: Path) -> None:
    """Without learning, the curves of a distilled run are those of the labels alone."""
    histories = []
    for params in (training_params(**OPTIONS, **STILL), distilled(weight=1, **STILL)):
        train(params, root)
        histories.append((root / MODEL / HISTORY).read_text())
    assert histories[0] == histories[1]


def test_the_same_inputs_give_the_same_bytes_also_after_an_interruption(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = distilled("ensemble", checkpoint_minutes=1e-9, shuffle_rows=90)

    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (root / MODEL).iterdir() if path.is_file()}

    train(params, root)
    expected = content()
    shutil.rmtree(root / "runs")
    step = TrainDLRM.training_step

    def stop_in_the_second_epoch(module: TrainDLRM, batch: Batch, batch_idx: int) -> None:
        if module.current_epoch == 1 and batch_idx == 2:
            raise KeyboardInterrupt
        step(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainDLRM, "training_step", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(params, root)
    assert (checkpoints_of(params, "cpu", root).directory / LAST).exists()
    train(params, root)
    assert content() == expected
    train(training_params(**OPTIONS), root)
    assert content()[WEIGHTS] != expected[WEIGHTS]


def test_scores_are_made_once(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = root / TEACHER_SCORES

    def scored(params: Params) -> bool:
        before = {path.name: path.stat().st_ino for path in folder.glob("*")}
        teacher_scores(params, root)
        after = {path.name: path.stat().st_ino for path in folder.glob("*")}
        assert len(after) == 1  # those of other teachers are removed
        said = capfd.readouterr().out
        assert ("score the training rows" in said) == (after != before)
        return after != before

    assert scored(distilled())
    assert not scored(distilled(weight=0.9, seed=5, batch_size=32, ensemble_size=2))
    assert teacher_scores(training_params(), root) == []
    assert not scored(distilled())
    assert scored(distilled("ensemble"))
    assert scored(distilled("ensemble", last_days=1))
    (root / "first").rename(root / "moved")
    assert scored(distilled("moved", "ensemble"))
    shutil.copytree(root / "moved", root / "copy")
    assert not scored(distilled("copy", "ensemble"))  # the same model elsewhere


@pytest.mark.parametrize("name", ["day_00.parquet", "manifest.json"])
def test_damaged_scores_are_made_again(
    root: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (first, *_) = teacher_scores(distilled(), root)
    path = first.with_name(name)
    expected = path.read_bytes()
    data = bytearray(expected)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    capfd.readouterr()
    assert teacher_scores(distilled(), root)[0] == first
    assert f"{first.parent} is damaged" in capfd.readouterr().out
    assert path.read_bytes() == expected


def test_the_log_the_bundle_and_the_key_of_the_run_name_the_teachers(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    params = distilled("first", "ensemble")
    train(params, root)
    versions = [load_bundle(root / name).version for name in ("first", "ensemble")]
    assert (
        f"learns from the labels and the scores of model {', '.join(versions)}\n"
        in capfd.readouterr().out
    )
    data = load_bundle(root / MODEL).manifest.data
    assert {name: sha256 for name, sha256 in data.items() if name.startswith("teachers/")} == {
        "teachers/1/bundle.json": sha256_file(root / "first" / MANIFEST),
        "teachers/2/bundle.json": sha256_file(root / "ensemble" / MANIFEST),
    }
    key = run_key(params, "cpu", root)
    shutil.rmtree(root / "first")
    shutil.copytree(root / "ensemble", root / "first")
    assert run_key(params, "cpu", root) != key


def test_a_bundle_without_teachers_records_none(taught: Path) -> None:
    assert not any("teachers" in name for name in load_bundle(taught / "first").manifest.data)


def test_the_rows_of_a_step_that_diverged_have_their_scores(root: Path) -> None:
    with pytest.raises(ConfigError, match="training diverged"):
        train(distilled(dense_optimizer={"name": "sgd", "lr": 1e38}), root)
    dumped = load_file(root / "runs/diverged/batch.safetensors")
    assert dumped["teacher_scores"].shape == dumped["labels"].shape


def test_the_bundle_that_is_replaced_cannot_teach(root: Path) -> None:
    shutil.copytree(root / "first", root / MODEL)
    with pytest.raises(
        ConfigError, match=r"distill\.teachers has artifacts/\./model, which this stage replaces"
    ):
        train(distilled("first", "artifacts/./model"), root)


def test_a_teacher_of_other_features_is_refused(root: Path, tmp_path: Path) -> None:
    project = tmp_path / "other"
    lines = project / "log.tsv"
    project.mkdir()
    with Progress("sample", None, None) as progress:
        write_sample(lines, 700, 7, 1, CRITEO, progress)
    params = make_params(
        data__source=str(lines),
        model=plain_model(embedding_dim=4, bottom_mlp=[8], top_mlp=[8]),
        train__distill={"teachers": [str(root / "first")], "weight": 0.5},
    )
    make_features(project, params)
    with pytest.raises(DataError, match=r"first: .*; name a teacher in params\.yaml that was"):
        train(params, project)
    assert not (project / MODEL).exists()


def test_a_damaged_teacher_is_refused(root: Path) -> None:
    (root / "first" / WEIGHTS).write_bytes(b"")
    with pytest.raises(DataError, match=rf"first/{WEIGHTS}: SHA-256"):
        train(distilled(), root)


def test_a_teacher_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    params = distilled("here", "no/where")
    (tmp_path / "here").mkdir()
    (tmp_path / "params.yaml").write_text(params.model_dump_json(by_alias=True))  # JSON is YAML
    with pytest.raises(DataError, match=r"distill\.teachers: no directory 'no/where'; name those"):
        load_checked_params(tmp_path)


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"teachers": [], "weight": 0.5}, "teachers"),
        ({"teachers": ["a", "b", "a"], "weight": 0.5}, "the teacher a is named twice"),
        ({"teachers": ["a"], "weight": 0}, "weight"),
        ({"teachers": ["a"], "weight": 1.01}, "weight"),
        ({"teachers": ["a"]}, "weight"),
    ],
)
def test_wrong_parameters_are_refused(distill: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        training_params(distill=distill)


def test_a_teacher_of_an_earlier_day_scores_the_rows_as_it_would_serve_them(tmp_path: Path) -> None:
    """Vocabularies have grown since, and it knows nothing of the new values.

    This is so for the newest day. In the files of earlier days, values that became frequent later
    are unseen.
    """
    folder = tmp_path / "clicks"
    folder.mkdir()
    with Progress("sample", None, None) as progress:
        write_sample(tmp_path / "log.tsv", 2000, 4, 1, CRITEO, progress)
    lines = (tmp_path / "log.tsv").read_text().splitlines(keepends=True)

    def write(day: int) -> None:
        (folder / f"day_{day}.tsv").write_text("".join(lines[500 * day : 500 * (day + 1)]))

    values: dict[str, Any] = {
        "data__source": "clicks",
        "features__fit_days": 1,
        "model": plain_model(embedding_dim=4, bottom_mlp=[8], top_mlp=[8]),
    }
    params = make_params(**values, train__epochs=1)
    for day in range(3):
        write(day)
    make_features(tmp_path, params)
    train(params, tmp_path)
    (tmp_path / MODEL).rename(tmp_path / "teacher")
    write(3)
    student = make_params(
        **values, train__epochs=1, train__distill={"teachers": ["teacher"], "weight": 0.5}
    )
    make_features(tmp_path, student)
    old, new = (
        FeatureState.load(path / "state") for path in (tmp_path / "teacher", tmp_path / FEATURES)
    )
    assert sum(new.cardinalities) > sum(old.cardinalities)
    *_, newest = teacher_scores(student, tmp_path)
    assert newest.stem == "day_002"
    predict(tmp_path / "teacher", folder / "day_2.tsv", tmp_path / "scores.parquet")
    served = pl.read_parquet(tmp_path / "scores.parquet")["score"]
    assert np.array_equal(scores_of([newest]), served.to_numpy())
    ids = pl.read_parquet(tmp_path / FEATURES / "train" / newest.name)
    sizes = dict(zip(old.schema.categorical_features, old.cardinalities, strict=True))
    assert any((ids[name] >= size).any() for name, size in sizes.items())  # new values are there
    train(student, tmp_path)
    assert read_json(tmp_path / MODEL / MANIFEST)["data"]["teachers/1/bundle.json"]
