"""A bundle records its inputs, has reproducible bytes, and is checked when it is loaded."""

import json
import math
import os
import pickle
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.artifact import Artifact
from common.bundle_layout import MANIFEST, MODEL, STATE, WEIGHTS
from common.checked_json import HASH_KEY, write_checked_json
from common.config.loading import ConfigError
from common.config.params import Params
from common.files import DataError, sha256_file, write_json
from common.layout import FEATURES
from tests.factories.models import log_lines, make_bundle, make_project
from training.inference.bundle import all_finite, load_bundle, read_manifest, save_bundle


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("bundle")
    params = make_project(root, log_lines(1400, 1))
    make_bundle(root, params)
    return root, params


@pytest.fixture
def bundle_dir(project: tuple[Path, Params], tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(project[0] / MODEL, tmp_path / "model"))


def rewrite(directory: Path, **changes: object) -> None:
    values = json.loads((directory / MANIFEST).read_text())
    write_checked_json(directory / MANIFEST, values | changes)


def relist(directory: Path, name: str) -> None:
    """Update the hash of a changed file in the manifest, so that the bundle is consistent."""
    files = json.loads((directory / MANIFEST).read_text())["files"]
    rewrite(directory, files=files | {name: sha256_file(directory / name)})


def test_a_loaded_bundle_equals_the_saved_one(project: tuple[Path, Params]) -> None:
    root, params = project
    bundle = load_bundle(root / MODEL)
    tensors = load_file(root / MODEL / WEIGHTS)
    assert not bundle.model.training
    assert tensors.keys() == bundle.model.state_dict().keys()
    assert all(
        torch.equal(tensors[name], tensor) for name, tensor in bundle.model.state_dict().items()
    )
    assert bundle.version == sha256_file(root / MODEL / MANIFEST)[:12]
    assert bundle.manifest.params["features"] == params.features.model_dump()
    assert bundle.manifest.data["raw/log.tsv"] == sha256_file(root / "log.tsv")
    assert bundle.manifest.data["features/data.json"] == sha256_file(
        root / "artifacts/features/data.json"
    )


def test_the_same_inputs_give_the_same_bytes(project: tuple[Path, Params], tmp_path: Path) -> None:
    root, params = project
    first = {path.name: path.read_bytes() for path in (root / MODEL).rglob("*") if path.is_file()}
    (root / MODEL).rename(tmp_path / "first")
    make_bundle(root, params)
    assert first == {
        path.name: path.read_bytes() for path in (root / MODEL).rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("folder", ["common", "training"])
def test_the_manifest_has_the_last_commit_of_the_code_and_whether_it_was_changed(
    project: tuple[Path, Params], tmp_path: Path, folder: str
) -> None:
    root = Path(
        shutil.copytree(project[0], tmp_path / "root", ignore=shutil.ignore_patterns("model"))
    )

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True
        ).stdout.strip()

    def save() -> tuple[str, str | None, bool]:
        shutil.rmtree(root / MODEL, ignore_errors=True)
        version = make_bundle(root, project[1])
        state = load_bundle(root / MODEL).manifest.git
        return version, state.commit, state.modified

    assert save()[1:] == (None, True)
    git("init", "-q")
    (root / folder).mkdir()
    (root / folder / "code.py").write_text("a = 1\n")
    git("add", folder)
    git("commit", "-qm", "code")
    code = git("rev-parse", "HEAD")
    first = save()
    assert first[1:] == (code, False)
    (root / "dvc.lock").write_text("b\n")
    git("add", "dvc.lock")
    git("commit", "-qm", "lock")
    assert save() == first  # a commit of the lock file does not change the model
    (root / folder / "code.py").write_text("a = 2\n")
    assert save()[1:] == (code, True)


def flip_a_bit(directory: Path) -> None:
    data = bytearray((directory / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (directory / WEIGHTS).write_bytes(data)


def other_shape(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    tensors["embeddings.tables.0.weight"] = tensors["embeddings.tables.0.weight"][1:].contiguous()
    save_file(tensors, directory / WEIGHTS)
    relist(directory, WEIGHTS)


def extra_tensor(directory: Path) -> None:
    save_file(load_file(directory / WEIGHTS) | {"spare": torch.zeros(1)}, directory / WEIGHTS)
    relist(directory, WEIGHTS)


def list_outside(directory: Path) -> None:
    (directory.parent / "outside").write_text("")
    relist(directory, "../outside")


def unlisted_weights(directory: Path) -> None:
    (directory / "other.safetensors").write_bytes((directory / WEIGHTS).read_bytes())


def without_weights(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    files = json.loads((directory / MANIFEST).read_text())["files"]
    rewrite(directory, files={name: sha256 for name, sha256 in files.items() if name != WEIGHTS})


def reparam(directory: Path, key: str, value: object) -> None:
    """Change a parameter of the recorded model."""
    params = json.loads((directory / MANIFEST).read_text())["params"]
    rewrite(directory, params=params | {"model": params["model"] | {key: value}})


def relist_as(directory: Path, name: str, sha256: str) -> None:
    files = json.loads((directory / MANIFEST).read_text())["files"]
    rewrite(directory, files=files | {name: sha256})


def pipe_in_place_of_the_weights(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    os.mkfifo(directory / WEIGHTS)


def link_in_place_of_the_weights(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory.parent / "elsewhere")
    (directory / WEIGHTS).symlink_to(directory.parent / "elsewhere")


def link_in_place_of_the_state(directory: Path) -> None:
    (directory / STATE).rename(directory.parent / "elsewhere")
    (directory / STATE).symlink_to(directory.parent / "elsewhere")


def pipe_in_place_of_the_manifest(directory: Path) -> None:
    (directory / MANIFEST).unlink()
    os.mkfifo(directory / MANIFEST)


def link_in_place_of_the_manifest(directory: Path) -> None:
    (directory / MANIFEST).rename(directory.parent / "elsewhere")
    (directory / MANIFEST).symlink_to(directory.parent / "elsewhere")


def folder_in_place_of_the_manifest(directory: Path) -> None:
    (directory / MANIFEST).unlink()
    (directory / MANIFEST).mkdir()


def bind(path: Path) -> None:
    """Make a socket; its address may only have about 100 characters."""
    before = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(before)


def set_value(directory: Path, name: str, position: tuple[int, ...], value: float) -> None:
    """Change one value of a tensor, and the hash of the weights."""
    tensors = load_file(directory / WEIGHTS)
    tensors[name][position] = value
    save_file(tensors, directory / WEIGHTS)
    relist(directory, WEIGHTS)


def not_a_number(directory: Path) -> None:
    set_value(directory, "top.0.bias", (3,), math.nan)


def infinite_row(directory: Path) -> None:
    set_value(directory, "embeddings.tables.0.weight", (7, 2), -math.inf)


def other_dtype(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    save_file(tensors | {"top.0.bias": tensors["top.0.bias"].double()}, directory / WEIGHTS)
    relist(directory, WEIGHTS)


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (flip_a_bit, r"weights\.safetensors: SHA-256 \w{64} found, \w{64} expected by bundle\.json"),
    (lambda d: (d / "state/vocabulary/C2.parquet").write_bytes(b"x"), r"C2\.parquet: SHA-256"),
    (lambda d: (d / "history.csv").unlink(), r"history\.csv is missing from the bundle"),
    (without_weights, r"weights\.safetensors is missing from the bundle"),
    (unlisted_weights, r"other\.safetensors: not listed in bundle\.json"),
    (lambda d: (d / MANIFEST).unlink(), r"no bundle here \(bundle\.json not found\)"),
    (lambda d: (d / MANIFEST).write_text("{"), r"bundle\.json is not JSON"),
    (lambda d: (d / MANIFEST).write_text("[]"), r"bundle\.json: format \[\] found, 1 expected"),
    (lambda d: rewrite(d, format=2), r"bundle\.json: format 2 found, 1 expected"),
    (lambda d: rewrite(d, files=None), r"bundle\.json: files: .*found None"),
    (lambda d: rewrite(d, params={}), r"bundle\.json: params\.ingest: missing"),
    (lambda d: rewrite(d, format={"a": 10**4000}), r"bundle\.json: format \{'a': 10+… found, 1"),
    (
        lambda d: reparam(d, "embedding_dim", 10**10),
        r"params\.model makes a model of [\d,]+ weights",
    ),
    (
        lambda d: reparam(d, "top_mlp", [10**9] * 9),
        r"params\.model makes a model of [\d,]+ weights",
    ),
    (
        lambda d: reparam(d, "interaction", {"name": "cross", "layers": 10**18, "rank": None}),
        r"params\.model makes a model of [\d,]+ weights, but weights\.safetensors has [\d,]+;",
    ),
    (
        lambda d: reparam(d, "interaction", {"name": "cross", "layers": 1, "rank": 10**9}),
        r"params\.model makes a model of [\d,]+ weights",
    ),
    (
        lambda d: reparam(d, "tables", {"name": "per_column", "dims": {"C99": 2}}),
        r"model\.tables\.dims: 'C99' is no categorical feature; .*bundle\.json says so; restore",
    ),
    (
        lambda d: reparam(d, "tables", {"name": "per_column", "dims": {"C1": 2}}),
        r"tensor embeddings\.tables\.0\.weight: \[\d+, 13\] found, \[\d+, 13\] expected",
    ),
    (lambda d: reparam(d, "embedding_dim", "13"), r"params\.model\.embedding_dim: .*found '13'"),
    (
        lambda d: relist_as(d, WEIGHTS, "x\n\x1b[31m"),
        r"weights\.safetensors: SHA-256 \w{64} found, x\\n\\x1b\[31m expected",
    ),
    (
        pipe_in_place_of_the_weights,
        r"weights\.safetensors is a named pipe; a bundle has only files",
    ),
    (link_in_place_of_the_weights, r"weights\.safetensors is a symbolic link; a bundle has only"),
    (link_in_place_of_the_state, r"state is a symbolic link; a bundle has only files"),
    (lambda d: os.mkfifo(d / "more"), r"more is a named pipe; a bundle has only files and folders"),
    (lambda d: bind(d / "s"), r"model/s is a socket; a bundle has only files and folders"),
    (pipe_in_place_of_the_manifest, r"bundle\.json is a named pipe; a bundle has only files"),
    (link_in_place_of_the_manifest, r"bundle\.json is a symbolic link; a bundle has only files"),
    (folder_in_place_of_the_manifest, r"bundle\.json is a folder; a bundle has only files"),
    (not_a_number, r"tensor top\.0\.bias: value nan at \[3\] is no finite number; restore"),
    (infinite_row, r"tensor embeddings\.tables\.0\.weight: value -inf at \[7, 2\] is no finite"),
    (other_dtype, r"tensor top\.0\.bias: F64 found, F32 expected"),
    (list_outside, r"lists '\.\./outside', which lies outside the bundle"),
    (
        other_shape,
        r"tensor embeddings\.tables\.0\.weight: \[\d+, 13\] found, \[\d+, 13\] expected",
    ),
    (extra_tensor, r"tensor spare: \[1\] found, none expected"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_bundle_is_refused_with_the_name_of_the_file(
    bundle_dir: Path, damage: Callable[[Path], object], message: str
) -> None:
    load_bundle(bundle_dir)
    damage(bundle_dir)
    with pytest.raises(DataError, match=message) as error:
        load_bundle(bundle_dir)
    assert str(error.value).isprintable()


def test_every_flipped_byte_of_the_manifest_is_noticed(bundle_dir: Path) -> None:
    path = bundle_dir / MANIFEST
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DataError, match=r"bundle\.json") as error:
            read_manifest(bundle_dir)
        assert str(error.value).isprintable()
    path.write_bytes(whole)
    read_manifest(bundle_dir)


def test_an_older_bundle_without_a_hash_of_itself_can_be_loaded(bundle_dir: Path) -> None:
    values = json.loads((bundle_dir / MANIFEST).read_text())
    del values[HASH_KEY]
    write_json(bundle_dir / MANIFEST, values)
    assert load_bundle(bundle_dir).manifest.sha256 is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_written(
    project: tuple[Path, Params], tmp_path: Path, value: float
) -> None:
    root, params = project
    model = load_bundle(root / MODEL).model
    model.embeddings.tables[0].weight[5, 1] = value
    with pytest.raises(
        ConfigError, match=r"tensor embeddings\.tables\.0\.weight is NaN or infinite"
    ):
        save_bundle(tmp_path, model.state_dict(), Artifact.open(root / FEATURES), params, root, {})
    assert list(tmp_path.iterdir()) == []


def test_every_value_of_a_tensor_is_looked_at() -> None:
    for shape in [(1,), (7,), (64,), (1000,), (33, 17), (3, 5, 2)]:
        tensor = torch.randn(shape)
        assert all_finite(tensor)
        for k in range(tensor.numel()):
            for value in (math.nan, math.inf, -math.inf):
                damaged = tensor.clone()
                damaged.view(-1)[k] = value
                assert not all_finite(damaged)
    assert all_finite(torch.zeros(0))


class Payload:
    """An object that prints when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (print, ("unpickled",))


def test_a_pickle_instead_of_the_weights_is_not_executed(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle_dir / WEIGHTS).write_bytes(pickle.dumps(Payload()))
    relist(bundle_dir, WEIGHTS)
    with pytest.raises(DataError, match="not a safetensors file"):
        load_bundle(bundle_dir)
    assert "unpickled" not in capsys.readouterr().out
