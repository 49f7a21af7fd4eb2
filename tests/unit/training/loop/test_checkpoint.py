"""Checkpoints: what they contain, which run they belong to, and the errors for damaged files."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.artifact import write_manifest
from common.bundle_layout import MODEL
from common.config.params import Params
from common.files import DataError
from common.layout import FEATURES
from tests.factories.features import training_params, write_features
from training.loop.checkpoint import (
    BEST,
    CHECKPOINTS,
    LAST,
    Checkpoints,
    append_checksum,
    checkpoints_of,
    run_key,
)
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


def put_code_into_it(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(
                name, pickle.dumps(Dangerous()) if name.endswith("data.pkl") else content
            )


def sealed(write: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a function that writes other content and the right checksum of it."""

    def damage(path: Path) -> None:
        write(path)
        append_checksum(path)

    return damage


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a function that makes something else in the place of the file."""

    def damage(path: Path) -> None:
        path.rename(path.with_name("moved"))
        make(path)

    return damage


NO_FILE = "a (symbolic link|named pipe|folder), not a file"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda path: os.truncate(path, path.stat().st_size - 100),
        "not a whole checkpoint",
    ),
    "half": (
        lambda path: os.truncate(path, path.stat().st_size // 2),
        "not a whole checkpoint",
    ),
    "three bytes": (lambda path: os.truncate(path, 3), "not a whole checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "not a whole checkpoint"),
    "a pickle": (
        sealed(lambda path: path.write_bytes(pickle.dumps(Dangerous()))),
        "not a whole checkpoint",
    ),
    "a pickle inside": (sealed(put_code_into_it), "more in it than tensors and plain values"),
    "text": (sealed(lambda path: path.write_text("weights")), "not a whole checkpoint"),
    "another program's": (
        sealed(lambda path: torch.save({"state_dict": {}}, path)),
        "not a checkpoint of this clickmill",
    ),
    "a tensor": (
        sealed(lambda path: torch.save(torch.ones(2), path)),
        "not a checkpoint of this clickmill",
    ),
    "another run's": (
        sealed(
            lambda path: torch.save(torch.load(path, weights_only=True) | {"key": "4567"}, path)
        ),
        "another run, 4567",
    ),
    "a link": (replace_by(lambda path: path.symlink_to(path.with_name("moved"))), NO_FILE),
    "a link to nothing": (replace_by(lambda path: path.symlink_to("nothing")), NO_FILE),
    "a pipe": (replace_by(os.mkfifo), NO_FILE),
    "a folder": (replace_by(Path.mkdir), NO_FILE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_the_runs_checkpoint_is_refused(
    made: Checkpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make, reason = DAMAGES[damage]
    make(made.directory / LAST)
    with pytest.raises(
        DataError, match=rf"0123/last.pt: .*{reason}.*; remove .*0123 to train from the start"
    ):
        made.read(LAST)
    assert not Path("was_here").exists()
    assert made.last()
    made.remove_if_damaged()
    assert not made.directory.exists()


def test_every_byte_of_a_file_is_checked(made: Checkpoints) -> None:
    path = made.directory / LAST
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"last.pt: not a whole checkpoint \(its checksum"):
            made.read(LAST)
    path.write_bytes(content)
    assert made.read(LAST)


def test_best_weights_of_another_step_are_refused(made: Checkpoints) -> None:
    model = build_model(training_params().model, [3, 4], 2, torch.Generator())
    with pytest.raises(
        DataError, match=r"best.pt: the weights of step 7 expected, None found; remove"
    ):
        made.best_weights(model, 7, made.directory)
    made.write(BEST, {"step": 6, "weights": {}})
    with pytest.raises(
        DataError, match=r"best.pt: the weights of step 7 expected, 6 found; remove"
    ):
        made.best_weights(model, 7, made.directory)


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


def stop_in_the_first_half(root: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Train, and leave the checkpoints of a run that was killed in its first half."""
    write_features(root, DAYS)
    params = training_params(validations=6, checkpoint_minutes=1e-9)
    save = Checkpoints.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "remove", lambda _: None)
        patch.setattr(
            Checkpoints,
            "save_checkpoint",
            lambda self, content, path, **_: (
                content.get("global_step", 0) > 5 or save(self, content, path)
            ),
        )
        train(params, root)
    return params


def model_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / MODEL).glob("*.*"))}


@pytest.mark.parametrize("name", [LAST, BEST])
@pytest.mark.parametrize("damage", ["a flipped byte", "half", "a pipe", "gone"])
def test_a_run_with_a_damaged_checkpoint_says_so_and_starts_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    damage: str,
) -> None:
    params = stop_in_the_first_half(tmp_path, monkeypatch)
    expected = model_of(tmp_path)
    (path,) = tmp_path.glob(f"runs/checkpoints/*/{name}")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    if damage == "a flipped byte":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=times)
    elif damage == "gone":
        path.unlink()
    else:
        DAMAGES[damage][0](path)
    capfd.readouterr()
    train(params, tmp_path)
    out = capfd.readouterr().out
    assert "resumes at" not in out
    if (name, damage) != (LAST, "gone"):  # which is a run that has not written one yet
        assert f"{name}: " in out
        assert "the run starts again, without its checkpoints" in out
    assert model_of(tmp_path) == expected
    assert not list(tmp_path.glob("runs/checkpoints/*"))


def test_a_run_with_undamaged_checkpoints_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    params = stop_in_the_first_half(tmp_path, monkeypatch)
    expected = model_of(tmp_path)
    capfd.readouterr()
    train(params, tmp_path)
    assert "resumes at" in capfd.readouterr().out
    assert model_of(tmp_path) == expected


def test_best_weights_that_are_lost_later_stop_the_run_before_it_trains_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    params = stop_in_the_first_half(tmp_path, monkeypatch)
    (best,) = tmp_path.glob(f"runs/checkpoints/*/{BEST}")
    monkeypatch.setattr(Checkpoints, "remove_if_damaged", lambda _: best.unlink())
    capfd.readouterr()
    with pytest.raises(DataError, match=r"best.pt: the weights of step \d+ expected, None found"):
        train(params, tmp_path)
    assert "%" not in capfd.readouterr().out
