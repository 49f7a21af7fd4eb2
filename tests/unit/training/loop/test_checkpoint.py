"""Checkpoints: what they contain, which run they belong to, and the errors for damaged files."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.artifact import write_manifest
from common.files import DataError
from common.layout import FEATURES
from tests.factories.features import training_params, write_features
from training.loop.checkpoint import BEST, CHECKPOINTS, LAST, Checkpoints, checkpoints_of, run_key
from training.models.factory import build_model
from training.stage import train

DAYS = {"train": [100], "valid": [50], "test": [50]}


@pytest.fixture
def made(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "0123")
    checkpoints.write(
        LAST,
        {
            "step": 7,
            "weights": {"table": torch.arange(6.0).reshape(3, 2)},
            "history": [[7, "train", 0.1 + 0.2]],
        },
    )
    return checkpoints


def test_a_checkpoint_has_the_written_values(made: Checkpoints) -> None:
    found = made.read(LAST)
    assert found is not None
    assert torch.equal(found["weights"]["table"], torch.arange(6.0).reshape(3, 2))
    assert (found["step"], found["history"]) == (7, [[7, "train", 0.1 + 0.2]])
    assert made.read(BEST) is None
    assert [path.name for path in made.directory.iterdir()] == [LAST]


@pytest.mark.parametrize("name", [LAST, BEST])
@pytest.mark.parametrize("kind", ["named pipe", "symbolic link", "folder"])
def test_what_is_no_file_is_not_opened(made: Checkpoints, name: str, kind: str) -> None:
    """To open a pipe would wait forever for somebody who writes to it."""
    path = made.directory / name
    (made.directory / LAST).rename(made.directory / "whole")
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "symbolic link":
        path.symlink_to("whole")
    else:
        path.mkdir()
    with pytest.raises(DataError, match=rf"{name}: a {kind}, not a file; remove .*0123 to train"):
        made.read(name)


class Dangerous:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.mkdir, ("was_here",)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[bytes(data).index(torch.arange(6.0).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)


def put_code_into_it(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(
                name, pickle.dumps(Dangerous()) if name.endswith("data.pkl") else content
            )


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 100),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "a bit flipped": flip_a_bit,
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Dangerous())),
    "a pickle inside": put_code_into_it,
    "text": lambda path: path.write_text("weights"),
    "another program's": lambda path: torch.save({"state_dict": {}}, path),
    "a tensor": lambda path: torch.save(torch.ones(2), path),
    "another run's": lambda path: torch.save(
        torch.load(path, weights_only=True) | {"key": "4567"}, path
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_the_runs_checkpoint_is_refused(
    made: Checkpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    DAMAGES[damage](made.directory / LAST)
    reason = "another run, 4567" if damage == "another run's" else "not a (whole )?checkpoint"
    with pytest.raises(
        DataError, match=rf"0123/last.pt: .*{reason}.*; remove .*0123 to train from the start"
    ):
        made.read(LAST)
    assert not Path("was_here").exists()


def test_best_weights_of_another_step_are_refused(made: Checkpoints) -> None:
    model = build_model(training_params().model, [3, 4], 2, torch.Generator())
    with pytest.raises(
        DataError, match=r"best.pt: the weights of step 7 expected, None found; remove"
    ):
        made.load_best(model, 7)
    made.write(BEST, {"step": 6, "weights": {}})
    with pytest.raises(
        DataError, match=r"best.pt: the weights of step 7 expected, 6 found; remove"
    ):
        made.load_best(model, 7)


def test_the_run_key_depends_on_all_that_changes_the_result(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    params = training_params()
    key = run_key(params, "cpu", tmp_path)
    for other in ({"logger": "none"}, {"checkpoint_minutes": 1}, {"profile": True}):
        assert run_key(training_params(**other), "cpu", tmp_path) == key
    for other in (
        {"seed": 2},
        {"epochs": 2},
        {"dense_optimizer": {"name": "adam", "lr": 0.5}},
        {"max_grad_norm": 1},
    ):
        assert run_key(training_params(**other), "cpu", tmp_path) != key
    assert run_key(params, "gpu", tmp_path) != key
    (tmp_path / FEATURES / "train/day_00.parquet").write_bytes(b"other rows")
    with pytest.raises(DataError, match=r"train/day_00\.parquet is damaged"):
        run_key(params, "cpu", tmp_path)
    write_manifest(tmp_path / FEATURES, {})
    assert run_key(params, "cpu", tmp_path) != key


def test_a_run_keeps_only_the_latest_checkpoints_of_other_runs(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    for age, name in enumerate(("new", "old", "older")):
        Checkpoints(tmp_path / CHECKPOINTS / name).write(LAST, {})
        os.utime(tmp_path / CHECKPOINTS / name, (1e9 - age, 1e9 - age))
    checkpoints_of(training_params(), "cpu", tmp_path)
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["new"]


def test_a_damaged_checkpoint_stops_the_stage_until_it_is_removed(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    params = training_params()
    checkpoints = checkpoints_of(params, "cpu", tmp_path)
    checkpoints.directory.mkdir(parents=True)
    (checkpoints.directory / LAST).write_bytes(b"PK")
    with pytest.raises(DataError, match=r"last.pt: not a whole checkpoint .*; remove .*"):
        train(params, tmp_path)
    checkpoints.remove()
    train(params, tmp_path)
    assert (tmp_path / "artifacts/model").exists()
    assert not checkpoints.directory.exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("half", "not a whole checkpoint"), ("gone", r"the weights of step \d+ expected, None found")],
)
def test_a_run_without_its_best_weights_stops_before_it_trains_further(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    damage: str,
    reason: str,
) -> None:
    write_features(tmp_path, DAYS)
    params = training_params(validations=6, checkpoint_minutes=1e-9)
    write = Checkpoints.write
    with monkeypatch.context() as patch:  # a run that was killed in its first half
        patch.setattr(Checkpoints, "remove", lambda _: None)
        patch.setattr(
            Checkpoints,
            "write",
            lambda self, name, content: (
                (name == LAST and content["global_step"] > 5) or write(self, name, content)
            ),
        )
        train(params, tmp_path)
    (best,) = tmp_path.glob(f"runs/checkpoints/*/{BEST}")
    DAMAGES["half"](best) if damage == "half" else best.unlink()
    capfd.readouterr()
    with pytest.raises(DataError, match=rf"best.pt: {reason}.*; remove"):
        train(params, tmp_path)
    assert "%" not in capfd.readouterr().out
