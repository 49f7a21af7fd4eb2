"""The bundle: a folder with the trained model and everything that scoring needs.

A bundle is a folder of plain data (common/bundle_layout.py lists its files), and nothing in it is
ever executed. The same inputs give the same bytes, so the manifest records no time.
"""

import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.artifact import Artifact
from common.bundle_layout import (
    MANIFEST,
    STATE,
    WARM_START_KEY,
    WEIGHTS,
    manifest_in,
    version_of,
)
from common.config.base import Strict
from common.config.loading import ConfigError, check
from common.config.model import Model
from common.config.params import Params, Train
from common.files import DataError, read_json, sha256_file, write_json
from common.hashed_files import find_mismatch
from common.layout import FEATURES, RAW
from features.encode.feature_state import FeatureState
from training.kernels.compiler import kernels_name
from training.models.dlrm import DLRM
from training.models.factory import build_model

# The folders that decide the bytes of the model, besides the data and the recorded parameters.
CODE = ("common", "features", "training", "requirements")
NOT_DECIDING = {"checkpoint_minutes", "logger", "profile"}  # of the section train
DECIDING = set(Train.model_fields) - NOT_DECIDING
RECORDED: Any = {"ingest": {"short_rows"}, "features": True, "model": True, "train": DECIDING}
PACKAGES = ("clickmill", "torch", "pytorch-lightning", "polars", "pyarrow", "numpy")
READABLE_BY_ALL = 0o644


class Git(Strict):
    """The state of the code in git.

    Attributes:
        commit: The last commit that changed CODE; None if there is none.
        modified: Whether CODE has changes that are not committed.
    """

    commit: str | None
    modified: bool


class Manifest(Strict):
    """The contents of bundle.json.

    Attributes:
        format: Version of this format.
        params: The parameters that decide the model, under their names in params.yaml.
        versions: Package -> version.
        operators: Operator -> its implementation in training, and the CPU's instruction set
            (training/kernels/choice.py); empty after training on a GPU.
        git: The state of the code.
        data: File that the model was made from -> SHA-256, in hex.
        files: File of the bundle -> SHA-256, in hex.
    """

    format: Literal[1]
    params: dict[str, Any]
    versions: dict[str, str]
    operators: dict[str, str] = Field(default_factory=dict)  # older bundles have none
    git: Git
    data: dict[str, str]
    files: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        model: The model, in eval mode on the CPU.
        state: The feature state that the model was trained with.
        manifest: What the model was made from.
        version: The model version.
    """

    model: DLRM
    state: FeatureState
    manifest: Manifest
    version: str


def save_bundle(
    directory: Path,
    model: DLRM,
    features: Artifact,
    params: Params,
    root: Path,
    operators: dict[str, str],
) -> str:
    """Write a bundle.

    Args:
        directory: Where the bundle is written. It may already contain history.csv.
        model: The model.
        features: artifacts/features, that the model was trained on. The feature state is copied.
        params: The parameters that the model was trained with.
        root: The project folder, whose raw log and git history are recorded.
        operators: The implementations that trained it (`Manifest.operators`).

    Returns:
        The model version.

    Raises:
        DataError: The feature state is not that of the training any more.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, directory / WEIGHTS)
    # safetensors makes the file readable by its owner only, but a server runs as another user.
    (directory / WEIGHTS).chmod(READABLE_BY_ALL)
    shutil.copytree(features.folder / STATE, directory / STATE)
    _check_state_copy(directory, features)
    manifest = Manifest(
        format=1,
        params=params.model_dump(mode="json", by_alias=True, include=RECORDED),
        versions={
            "python": platform.python_version(),
            "kernels": kernels_name(),
            **{name: version(name) for name in PACKAGES},
        },
        operators=operators,
        git=_git_state(root),
        data=_data_hashes(features, root, params.train.warm_start_dir(root)),
        files={name: sha256_file(directory / name) for name in _files_in(directory)},
    )
    write_json(directory / MANIFEST, manifest.model_dump(mode="json"))
    return version_of(directory)


def load_bundle(directory: Path) -> Bundle:
    """Check and load a bundle.

    Raises:
        DataError: The format is not known, a file is missing, not listed or has another hash, or
            a tensor has another name or shape than the parameters and the feature state say.
    """
    manifest, model_params, state = read_manifest(directory)
    path = directory / MANIFEST
    try:
        model = build_model(
            model_params, state.cardinalities, len(state.schema.dense_features), torch.Generator()
        )
    except ConfigError as error:
        raise DataError(f"{path}: {error}; restore the bundle from where it was made") from None
    model.load_state_dict(_read_weights(directory / WEIGHTS, model), assign=True)
    return Bundle(model.eval().requires_grad_(False), state, manifest, version_of(directory))


def read_manifest(directory: Path) -> tuple[Manifest, Model, FeatureState]:
    """Check a bundle, and read everything but its tensors.

    Returns:
        The manifest, the parameters of its model, and the feature state.

    Raises:
        DataError: The format is not known, or a file is missing, not listed or has another hash.
    """
    path = manifest_in(directory)
    values = read_json(path)
    bundle_format = values.get("format") if isinstance(values, dict) else values
    if bundle_format != 1:
        raise DataError(
            f"{path}: format {bundle_format!r} found, 1 expected; "
            "load it with the version of clickmill that wrote it"
        )
    try:
        manifest = check(Manifest, values, path)
        model_params = check(Model, manifest.params.get("model"), path)
    except ConfigError as error:
        raise DataError(f"{error}; restore the bundle from where it was made") from None
    _check_files(directory, manifest.files)
    return manifest, model_params, FeatureState.load(directory / STATE)


def _read_weights(path: Path, model: DLRM) -> dict[str, torch.Tensor]:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file ({error}); train again") from None
    expected = model.state_dict()
    for name in sorted(tensors.keys() | expected.keys()):
        shape, expected_shape = _shape(tensors.get(name)), _shape(expected.get(name))
        if shape != expected_shape:
            raise DataError(
                f"{path}: tensor {name}: {shape} found, {expected_shape} expected "
                "from the feature state and the parameters; train again"
            )
    return tensors


def _shape(tensor: torch.Tensor | None) -> str:
    return "none" if tensor is None else f"{list(tensor.shape)} {tensor.dtype}"


def _check_files(directory: Path, sha256_by_name: dict[str, str]) -> None:
    for name in sha256_by_name:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(
                f"{directory / MANIFEST}: lists {name!r}, which lies outside the bundle; "
                "do not use this bundle"
            )
    names = _files_in(directory)
    for name in [WEIGHTS, *sha256_by_name]:
        if name not in names or name not in sha256_by_name:
            missing_from = "the bundle" if name not in names else MANIFEST
            raise DataError(
                f"{directory}: {name} is missing from {missing_from}; "
                "fetch or train the bundle again"
            )
    for name in names:
        if name not in sha256_by_name:
            raise DataError(
                f"{directory / name}: not listed in {MANIFEST}; "
                "remove it, or fetch the bundle again"
            )
    if mismatch := find_mismatch(directory, sha256_by_name):
        raise DataError(
            f"{mismatch.path}: SHA-256 {mismatch.actual} found, {mismatch.expected} expected "
            f"by {MANIFEST}; fetch or train the bundle again"
        )


def _files_in(directory: Path) -> list[str]:
    """List the files of a folder except bundle.json, relative to it and sorted."""
    files = (
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )
    return sorted(name for name in files if name != MANIFEST)


def _check_state_copy(directory: Path, features: Artifact) -> None:
    """Check that the feature state in a bundle is the one that the training began with."""
    recorded = {name: features.files[name].sha256 for name in features.names(STATE)}
    if mismatch := find_mismatch(directory, recorded):
        raise DataError(
            f"{features.folder / mismatch.path.relative_to(directory)} has changed while the model"
            " was trained; train again"
        )


def _data_hashes(features: Artifact, root: Path, warm_start_dir: Path | None) -> dict[str, str]:
    """Return the SHA-256 of what the model was made from.

    These are the feature files (without the feature state, which is in the bundle),
    the files of the raw log as the collect stage recorded them, and the manifest of the bundle that
    a warm start took its weights from.
    """
    hashes = {}
    if warm_start_dir:
        hashes[WARM_START_KEY] = sha256_file(manifest_in(warm_start_dir))
    for name, file in features.files.items():
        if not name.startswith(f"{STATE}/"):
            hashes[f"{FEATURES.name}/{name}"] = file.sha256
    if (root / RAW).exists():
        raw = Artifact.open(root / RAW)
        for name in raw.about["logs"]:
            hashes[f"{RAW.name}/{name}"] = raw.files[name].sha256
    return hashes


def _git_state(root: Path) -> Git:
    """Read the state of CODE in git.

    It does not depend on HEAD, because a commit of dvc.lock must not change the bundle that a
    second run makes.
    """
    commit = _git_output(root, "log", "-1", "--format=%H", "--", *CODE)
    if commit is None:
        return Git(commit=None, modified=True)
    changes = _git_output(root, "status", "--porcelain", "--", *CODE)
    return Git(commit=commit, modified=changes is not None)


def _git_output(root: Path, *arguments: str) -> str | None:
    """Run git; return None if there is no git, no repository or no output."""
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip() or None
