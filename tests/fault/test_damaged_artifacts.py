"""One flipped byte in any file of any artifact: it is refused by name, or made again.

The time of the file stays as it was, so that neither DVC nor the stages see it by the time.
"""

import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from common.artifact import MANIFEST, Artifact
from common.bundle_layout import MODEL
from common.checked_json import write_checked_json
from common.config.params import Params
from common.files import DataError, read_json
from common.layout import EVALUATION, FEATURES, PARQUET, RAW
from features.collect.stage import collect
from features.dataset.stage import build_features
from features.ingest.stage import SHARDS_DIR, ingest
from tests.factories.models import log_lines, make_bundle
from tests.factories.support import make_features, make_params, plain_model
from training.evaluation.stage import evaluate
from training.inference.bundle import load_bundle
from training.promotion.decide import decide_promotion
from training.promotion.evaluated_test_set import EvaluatedTestSet
from training.stage import train

NUM_DAYS, DAY_ROWS = 4, 150
Stage = Callable[[Params, Path], object]


def decide(params: Params, root: Path) -> None:
    """Decide on a promotion without a champion."""
    decide_promotion(params, root, None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """Make all artifacts of a log of four days; the model has random weights."""
    root = tmp_path_factory.mktemp("made")
    (root / "logs").mkdir()
    lines = log_lines(NUM_DAYS * DAY_ROWS, seed=1)
    for k in range(NUM_DAYS):
        day = lines[k * DAY_ROWS : (k + 1) * DAY_ROWS]
        (root / "logs" / f"day_{k}.tsv").write_text("\n".join([*day, "rubbish"]) + "\n")
    params = make_params(
        data__source=str(root / "logs"),
        features__min_count=3,
        features__fit_days=2,
        ingest__max_bad_fraction=0.1,
        model=plain_model(embedding_dim=4, bottom_mlp=[8], top_mlp=[8]),
        train__accelerator="cpu",
        train__logger="none",
    )
    make_features(root, params)
    make_bundle(root, params)
    evaluate(params, root)
    return root, params


@pytest.fixture
def project(made: tuple[Path, Params], tmp_path: Path) -> tuple[Path, Params]:
    """Return a copy of the project, whose files may be damaged."""
    root, params = made
    shutil.copytree(root, tmp_path / "project", copy_function=shutil.copy2)
    return tmp_path / "project", params


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file, and leave its time as it was."""
    stat, contents = path.stat(), bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.unlink()  # it may be a hard link
    path.write_bytes(contents)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def remove_outputs(root: Path, folder: Path) -> None:
    """Remove an artifact, so that the stage that makes it can reuse nothing of it."""
    shutil.rmtree(root / folder, ignore_errors=True)


@pytest.mark.parametrize(
    ("folder", "stage", "output", "names"),
    [
        (RAW, ingest, PARQUET, ["day_0.tsv", "day_3.tsv"]),
        (PARQUET, build_features, FEATURES, ["day_0.tsv.parquet", "day_3.tsv.parquet"]),
        (
            FEATURES,
            train,
            MODEL,
            [
                "train/day_001.parquet",
                "valid/day_003.parquet",
                "state/state.json",
                "state/vocabulary/C3.parquet",
                "data.json",
            ],
        ),
        (FEATURES, evaluate, EVALUATION, ["test/day_003.parquet", "train/day_000.parquet"]),
        (
            EVALUATION,
            decide,
            Path("nothing"),
            ["scores.parquet", "metrics.json", "plots/calibration.csv"],
        ),
        (PARQUET, decide, Path("nothing"), ["day_3.tsv.parquet"]),
        (RAW, decide, Path("nothing"), ["day_3.tsv"]),
        (FEATURES, decide, Path("nothing"), ["data.json"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_stage_refuses_a_damaged_input_by_name(
    project: tuple[Path, Params],
    folder: Path,
    stage: Stage,
    output: Path,
    names: list[str],
) -> None:
    root, params = project
    assert set(names) <= Artifact.open(root / folder).files.keys()
    for name, damage in [*((name, flip) for name in [*names, MANIFEST]), (names[0], Path.unlink)]:
        path = root / folder / name
        whole = path.read_bytes()
        damage(path)
        remove_outputs(root, output)
        remove_outputs(root, SHARDS_DIR)
        with pytest.raises(
            DataError, match=rf"{folder}/{name} is (damaged|missing).*; (remove it and )?run the st"
        ):
            stage(params, root)
        assert not (root / output).exists()
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("stage", "folder"), [(ingest, PARQUET), (build_features, FEATURES), (evaluate, EVALUATION)]
)
def test_a_stage_makes_its_own_damaged_output_again(
    project: tuple[Path, Params], stage: Stage, folder: Path
) -> None:
    root, params = project
    written = {
        name: (root / folder / name).read_bytes() for name in Artifact.open(root / folder).files
    }
    assert len(written) > 4
    for name in [*written, MANIFEST]:
        flip(root / folder / name)
        if folder == EVALUATION or name.split("/")[0] in ("counts", "state", MANIFEST):
            continue  # these are written again in any case; all at once below
        stage(params, root)
        assert (root / folder / name).read_bytes() == written[name], name
    stage(params, root)
    artifact = Artifact.open(root / folder)
    assert {name: artifact.path(name).read_bytes() for name in artifact.files} == written


def test_collect_copies_a_damaged_log_again(
    project: tuple[Path, Params], capsys: pytest.CaptureFixture[str]
) -> None:
    """The damaged copy has a new time, as after a restore from a broken disk."""
    root, params = project
    copy = root / RAW / "day_1.tsv"
    whole = copy.read_bytes()
    flip(copy)
    os.utime(copy)
    collect(params, root)
    assert copy.read_bytes() == whole
    flip(copy)  # with the time of the log only a reader sees it, and its remedy works
    remove_outputs(root, PARQUET)
    with pytest.raises(DataError, match=r"day_1\.tsv is damaged.*remove it and run the stage coll"):
        ingest(params, root)
    copy.unlink()
    collect(params, root)
    assert copy.read_bytes() == whole
    flip(root / RAW / MANIFEST)
    collect(params, root)
    assert "all log files are copied again" in capsys.readouterr().out
    assert Artifact.open(root / RAW).path("day_1.tsv") == copy


def test_the_bundle_must_be_the_one_that_was_evaluated(project: tuple[Path, Params]) -> None:
    root, params = project
    path = root / MODEL / "bundle.json"
    manifest = read_json(path)
    manifest["data"]["raw/day_0.tsv"] = "0" * 64
    write_checked_json(path, manifest)  # a bundle of another model that can be loaded
    with pytest.raises(DataError, match=r"evaluation is of model \w{12}, but the bundle is model"):
        decide(params, root)


def test_a_day_that_is_not_listed_is_not_read(project: tuple[Path, Params]) -> None:
    root, params = project
    shutil.copy(
        root / FEATURES / "train/day_000.parquet", root / FEATURES / "train/day_900.parquet"
    )
    evaluate(params, root)
    train(params, root)
    recorded = read_json(root / MODEL / "bundle.json")["data"]
    assert "features/train/day_000.parquet" in recorded
    assert "features/train/day_900.parquet" not in recorded


@pytest.mark.parametrize(
    ("stage", "function", "name", "output"),
    [
        (ingest, "features.ingest.shard._convert", RAW / "day_0.tsv", PARQUET),
        (
            build_features,
            "features.dataset.stage.data_json",
            PARQUET / "day_1.tsv.parquet",
            FEATURES,
        ),
        (train, "training.stage.run_trainer", FEATURES / "train/day_001.parquet", MODEL),
        (
            evaluate,
            "training.evaluation.stage.write_report",
            FEATURES / "test/day_003.parquet",
            EVALUATION,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_input_that_is_written_to_while_a_stage_works_ends_it(
    project: tuple[Path, Params],
    monkeypatch: pytest.MonkeyPatch,
    stage: Stage,
    function: str,
    name: Path,
    output: Path,
) -> None:
    """The byte is flipped after the check, with the time of the file as it was."""
    root, params = project
    remove_outputs(root, output)
    module, _, attribute = function.rpartition(".")
    real = getattr(import_module(module), attribute)
    flipped = []

    def flip_and_call(*arguments: Any, **options: Any) -> Any:
        if not flipped:
            flipped.append(name)
            flip(root / name)
        return real(*arguments, **options)

    monkeypatch.setattr(function, flip_and_call)
    with pytest.raises(DataError, match=rf"{name.name} is damaged: its CRC-32"):
        stage(params, root)
    assert flipped
    assert not (root / output).exists()


def test_scores_that_are_written_to_while_models_are_compared_end_it(
    project: tuple[Path, Params],
) -> None:
    root, params = project
    test_set = EvaluatedTestSet.open(load_bundle(root / MODEL).state.schema, params, root)
    assert sum(rows.height for rows, _ in test_set.pieces()) > 0
    with pytest.raises(DataError, match=r"scores\.parquet is damaged: its CRC-32"):  # noqa: PT012
        for _ in test_set.pieces():
            flip(root / EVALUATION / "scores.parquet")


def test_features_that_change_during_the_training_end_it(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import stage

    root, params = project
    before = (root / MODEL / "bundle.json").read_bytes()
    run_trainer = stage.run_trainer

    def run(run: stage.TrainingRun) -> None:
        run_trainer(run)
        flip(root / FEATURES / "state/vocabulary/C3.parquet")

    monkeypatch.setattr(stage, "run_trainer", run)
    with pytest.raises(DataError, match=r"C3\.parquet has changed while the model was trained"):
        train(params, root)
    assert (root / MODEL / "bundle.json").read_bytes() == before
