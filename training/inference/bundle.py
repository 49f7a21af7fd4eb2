"""The bundle: what leaves the pipeline, and all that scoring needs. A directory of plain data; nothing in it is ever executed.

    weights.safetensors   the model's parameters
    state/                the feature state, schema included
    history.csv           the training curves
    bundle.json           what it was made from, and the SHA-256 of every other file

The version is the first 12 hex digits of bundle.json's SHA-256: as bundle.json holds every other file's hash, it names the whole bundle.
The same inputs give the same bytes, so no time is recorded.
"""

import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.bundle_layout import (
    MANIFEST,
    STATE,
    WARM_START_KEY,
    WEIGHTS,
    manifest_in,
    version_of,
)
from common.config.base import Strict
from common.config.model import Model
from common.config.params import ConfigError, Params, Train, check
from common.files import DataError, read_json, sha256_file, write_json
from features.collect.stage import RAW
from features.encode.feature_state import FeatureState
from features.encode.stage import FEATURES
from training.kernels.compiler import kernels_name
from training.models.dlrm import DLRM
from training.models.factory import build_model

CODE = (
    "common",
    "features",
    "training",
    "requirements",
)  # what decides the model's bytes, besides the data and the recorded params
NOT_DECIDING = {"checkpoint_minutes", "logger", "profile"}  # of the section train
DECIDING = set(Train.model_fields) - NOT_DECIDING
RECORDED: Any = {"ingest": {"short_rows"}, "features": True, "model": True, "train": DECIDING}
PACKAGES = ("clickmill", "torch", "pytorch-lightning", "polars", "pyarrow", "numpy")


class Git(Strict):
    """commit: the last one that touched CODE (null: none known); modified: whether CODE differs from it."""

    commit: str | None
    modified: bool


class Manifest(Strict):
    """bundle.json. params: resolved, by params.yaml's names; data and files: path -> SHA-256, hex."""

    format: Literal[1]
    params: dict[str, Any]
    versions: dict[str, str]
    git: Git
    data: dict[str, str]
    files: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle; the model is in eval mode on the CPU."""

    model: DLRM
    state: FeatureState
    manifest: Manifest
    version: str


def save_bundle(directory: Path, model: DLRM, state_dir: Path, params: Params, root: Path) -> str:
    """Complete the bundle in directory (where history.csv may already stand) and return its version.

    state_dir: the saved feature state; root: the repository, whose features, raw manifest and git history are recorded.
    """
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
        directory / WEIGHTS,
    )
    (directory / WEIGHTS).chmod(
        0o644
    )  # safetensors leaves it to its owner alone, and a server is another user
    shutil.copytree(state_dir, directory / STATE)
    manifest = Manifest(
        format=1,
        params=params.model_dump(mode="json", by_alias=True, include=RECORDED),
        versions={
            "python": platform.python_version(),
            "kernels": kernels_name(),
            **{name: version(name) for name in PACKAGES},
        },
        git=_git(root),
        data=_data_hashes(root, params.train.warm_start_from),
        files={name: sha256_file(directory / name) for name in _files_in(directory)},
    )
    write_json(directory / MANIFEST, manifest.model_dump(mode="json"))
    return version_of(directory)


def load_bundle(directory: Path) -> Bundle:
    """Read a bundle, checking all of it first: format, that just the listed files are there, their hashes, the tensors' names and shapes.

    Raises DataError naming the file, what was found and what was expected.
    """
    manifest, parts, state = read_manifest(directory)
    path = directory / MANIFEST
    try:
        model = build_model(
            parts, state.cardinalities, len(state.schema.dense_features), torch.Generator()
        )
    except ConfigError as error:
        raise DataError(f"{path}: {error}; restore the bundle from where it was made") from None
    model.load_state_dict(_read_weights(directory / WEIGHTS, model), assign=True)
    return Bundle(model.eval().requires_grad_(False), state, manifest, version_of(directory))


def read_manifest(directory: Path) -> tuple[Manifest, Model, FeatureState]:
    """What load_bundle reads and checks but for the tensors: the manifest, its section `model`, the state."""
    path = manifest_in(directory)
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != 1:
        found = values.get("format") if isinstance(values, dict) else values
        raise DataError(
            f"{path}: format {found!r} found, 1 expected; load it with the clickmill that wrote it"
        )
    try:
        manifest = check(Manifest, values, path)
        parts = check(Model, manifest.params.get("model"), path)
    except ConfigError as error:
        raise DataError(f"{error}; restore the bundle from where it was made") from None
    _check_files(directory, manifest.files)
    return manifest, parts, FeatureState.load(directory / STATE)


def _read_weights(path: Path, model: DLRM) -> dict[str, torch.Tensor]:
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file ({error}); train again") from None
    expected = model.state_dict()
    for name in sorted(found.keys() | expected.keys()):
        shapes = [
            f"{list(t[name].shape)} {t[name].dtype}" if name in t else "none"
            for t in (found, expected)
        ]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"{path}: tensor {name}: {shapes[0]} found, {shapes[1]} expected from the state and the params; train again"
            )
    return found


def _check_files(directory: Path, listed: dict[str, str]) -> None:
    for name in listed:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(
                f"{directory / MANIFEST}: lists {name!r}, which lies outside the bundle; do not use this bundle"
            )
    found = _files_in(directory)
    for name in [WEIGHTS, *listed]:
        if name not in found or name not in listed:
            missing_from = "the bundle" if name not in found else MANIFEST
            raise DataError(
                f"{directory}: {name} is missing from {missing_from}; fetch or train the bundle again"
            )
    for name in found:
        if name not in listed:
            raise DataError(
                f"{directory / name}: not listed in {MANIFEST}; remove it, or fetch the bundle again"
            )
        if (sha256 := sha256_file(directory / name)) != listed[name]:
            raise DataError(
                f"{directory / name}: SHA-256 {sha256} found, {listed[name]} expected by {MANIFEST}; fetch or train the bundle again"
            )


def _files_in(directory: Path) -> list[str]:
    """Every file but bundle.json, relative, sorted."""
    files = (
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )
    return sorted(name for name in files if name != MANIFEST)


def _data_hashes(root: Path, start: str | None) -> dict[str, str]:
    """The features' files as they are (the state is in the bundle), the raw log's files as collect recorded them, and the bundle whose
    weights training began with."""
    features = {
        name: sha256_file(root / FEATURES / name)
        for name in _files_in(root / FEATURES)
        if not name.startswith(f"{STATE}/")
    }
    manifest = root / RAW / "manifest.json"
    raw = (
        {file["name"]: file["sha256"] for file in read_json(manifest)["files"]}
        if manifest.exists()
        else {}
    )
    begun = {WARM_START_KEY: sha256_file(manifest_in(root / start))} if start else {}
    return begun | {
        f"{folder.name}/{name}": sha256
        for folder, files in ((FEATURES, features), (RAW, raw))
        for name, sha256 in files.items()
    }


def _git(root: Path) -> Git:
    """Not HEAD: committing dvc.lock must not change the bundle that a rerun makes."""
    commit = _git_output(root, "log", "-1", "--format=%H", "--", *CODE)
    if commit is None:
        return Git(commit=None, modified=True)
    return Git(
        commit=commit, modified=_git_output(root, "status", "--porcelain", "--", *CODE) is not None
    )


def _git_output(root: Path, *arguments: str) -> str | None:
    """What git printed; None where there is no git, no repository or nothing to print."""
    try:
        return (
            subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
            ).stdout.strip()
            or None
        )
    except (OSError, subprocess.CalledProcessError):
        return None
