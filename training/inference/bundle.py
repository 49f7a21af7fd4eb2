"""The bundle: a folder with the trained model and everything that scoring needs.

A bundle is a folder of plain data (common/bundle_layout.py lists its files), and nothing in it is
ever executed. The same inputs give the same bytes, so the manifest records no time.
"""

import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from common.artifact import Artifact
from common.bundle_layout import (
    MANIFEST,
    ONLY_FILES,
    STATE,
    WARM_START_KEY,
    WEIGHTS,
    manifest_in,
    teacher_key,
    version_of,
    weights_name,
)
from common.checked_json import HASH_KEY, is_as_written, write_checked_json
from common.config.base import Strict
from common.config.loading import ConfigError, as_data_error, check_json, one_line, shorten
from common.config.model import Model
from common.config.params import Params, Train
from common.files import DataError, other_kind, read_json, replaced, sha256_file
from common.hashed_files import find_mismatch
from common.layout import FEATURES, RAW
from features.collect.manifest import RawManifest
from features.encode.feature_state import FeatureState
from features.schema.check_params import check_column_dims
from training.inference.compressed_model import Compression, Git, load_compressed_model
from training.inference.weights_file import (
    RESTORE,
    all_finite,
    check_finite,
    check_shapes,
    check_size,
    read_shapes,
)
from training.kernels.compiler import kernels_name
from training.models.dlrm import DLRM
from training.models.ensemble import Ensemble
from training.models.factory import WITHOUT_ROWS, build_model, inputs_of, num_weights
from training.tensor_files import Rows, map_tensors, write_tensors

# The folders that decide the bytes of the model, besides the data and the recorded parameters.
CODE = ("common", "features", "training", "requirements")
NOT_DECIDING = {"checkpoint_minutes", "logger", "profile"}  # of the section train
DECIDING = set(Train.model_fields) - NOT_DECIDING
RECORDED: Any = {"ingest": {"short_rows"}, "features": True, "model": True, "train": DECIDING}
PACKAGES = ("clickmill", "torch", "pytorch-lightning", "polars", "pyarrow", "numpy")
READABLE_BY_ALL = 0o644
Weights = Mapping[str, Tensor | Rows]  # under the names of the model's state dict


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
        trained_days: The names of the days with training rows; None in older bundles.
        num_members: The number of models of the ensemble. Only the manifest of an ensemble has it,
            so versions of clickmill that know no ensembles refuse those.
        compression: How the bundle was compressed; None if it was not.
        sha256: The SHA-256 of all of the above (common/checked_json.py); None in older bundles.
    """

    format: Literal[1]
    params: dict[str, Any]
    versions: dict[str, str]
    operators: dict[str, str] = Field(default_factory=dict)  # older bundles have none
    git: Git
    data: dict[str, str]
    files: dict[str, str]
    trained_days: list[str] | None = None
    num_members: Annotated[int, Field(ge=1)] = 1
    compression: Compression | None = None
    sha256: str | None = None


class RecordedIngest(Strict):
    """The parameters of the section `ingest` that scoring needs."""

    short_rows: Literal["quarantine", "fill"]


class RecordedParams(Strict):
    """The recorded parameters. Scoring needs those of `ingest` and `model`."""

    ingest: RecordedIngest
    features: dict[str, Any]
    model: Model
    train: dict[str, Any]


class ManifestParams(BaseModel):
    """The part of bundle.json with the recorded parameters."""

    params: RecordedParams


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        model: The model, in eval mode on the CPU; an ensemble if there are several.
        state: The feature state that the model was trained with.
        manifest: What the model was made from.
        version: The model version.
    """

    model: DLRM | Ensemble
    state: FeatureState
    manifest: Manifest
    version: str


def save_bundle(
    directory: Path,
    weights: Weights,
    features: Artifact,
    params: Params,
    root: Path,
    operators: dict[str, str],
) -> str:
    """Write a bundle of one model.

    Args:
        directory: Where the bundle is written. It may already contain history.csv.
        weights: The weights of the model, under the names of its state dict.
        features: artifacts/features, that the model was trained on. The feature state is copied.
        params: The parameters that the model was trained with.
        root: The project folder, whose raw log and git history are recorded.
        operators: The implementations that trained it (`Manifest.operators`).

    Returns:
        The model version.

    Raises:
        ConfigError: A weight is NaN or infinite.
        DataError: The feature state is not that of the training any more.
    """
    save_weights(directory / WEIGHTS, weights)
    return complete_bundle(directory, features, params, root, operators)


def save_weights(path: Path, weights: Weights) -> None:
    """Write the weights of a model to a file.

    Raises:
        ConfigError: A weight is NaN or infinite.
    """
    with replaced(path) as scratch:
        write_tensors(scratch, weights, _check_trained)
        scratch.chmod(READABLE_BY_ALL)  # a server runs as another user


def _check_trained(name: str, values: Tensor) -> None:
    if not all_finite(values):
        raise ConfigError(
            f"training diverged: a weight in tensor {name} is NaN or infinite, so no bundle is"
            " written; in params.yaml, lower train.dense_optimizer.lr and"
            " train.embedding_optimizer.lr, raise train.warmup_steps or set train.max_grad_norm"
        )


def complete_bundle(
    directory: Path,
    features: Artifact,
    params: Params,
    root: Path,
    operators: dict[str, str],
    num_members: int = 1,
) -> str:
    """Write all of a bundle but the weights and the training curves, which are there already.

    Args:
        directory: The folder of the bundle, with the weights of each model (`weights_name`) and
            history.csv.
        features: artifacts/features, that the models were trained on.
        params: The parameters that the models were trained with.
        root: The project folder, whose raw log and git history are recorded.
        operators: The implementations that trained them.
        num_members: The number of models.

    Returns:
        The model version.

    Raises:
        DataError: The feature state is not that of the training any more.
    """
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
        git=git_state(root),
        data=_data_hashes(features, root, params.train),
        files={name: sha256_file(directory / name) for name in files_in(directory)},
        trained_days=_trained_days(features),
        num_members=num_members,
    )
    write_manifest(directory, manifest)
    return version_of(directory)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write bundle.json. It mentions neither an ensemble nor compression where there is none."""
    exclude = {"compression"} if manifest.compression is None else set()
    if manifest.num_members == 1:
        exclude.add("num_members")
    write_checked_json(directory / MANIFEST, manifest.model_dump(mode="json", exclude=exclude))


def _trained_days(features: Artifact) -> list[str]:
    """Return `Manifest.trained_days` of a model that is trained on these features."""
    days = features.read_json("data.json")["days"]
    return [day["name"] for day in days if day["split_rows"].get("train")]


def load_bundle(directory: Path) -> Bundle:
    """Check and load a bundle.

    Raises:
        DataError: A file is missing, not listed, no file or has another hash; the manifest or the
            feature state has contents that no bundle has; or a tensor has another name or shape
            than the parameters and the feature state say, or a value that is NaN or infinite.
    """
    manifest, model_params, state = read_manifest(directory)
    members = [
        _load_model(directory / weights_name(member), manifest, model_params, state)
        for member in range(manifest.num_members)
    ]
    model = members[0] if len(members) == 1 else Ensemble(members)
    return Bundle(model.eval().requires_grad_(False), state, manifest, version_of(directory))


def check_same_state(bundle: Bundle, features: Artifact) -> None:
    """Check that the rows of artifacts/features are encoded as those that a model was trained on.

    Raises:
        DataError: They have another feature state.
    """
    name = f"{STATE}/state.json"
    if features.files[name].sha256 != bundle.manifest.files[name]:
        raise DataError(
            f"{features.folder / name} is not the feature state that model {bundle.version} was "
            "trained with; run the train stage again"
        )


def _load_model(path: Path, manifest: Manifest, params: Model, state: FeatureState) -> DLRM:
    """Load one model from a file of weights of a bundle."""
    try:
        check_column_dims(params, state.schema)
    except ConfigError as error:
        raise as_data_error(error, f"{path.with_name(MANIFEST)} says so; {RESTORE}") from None
    if manifest.compression is None:
        return _load_float32_model(path, params, state)
    return load_compressed_model(path, manifest.compression, params, state)


def _load_float32_model(path: Path, params: Model, state: FeatureState) -> DLRM:
    num_dense = len(state.schema.dense_features)
    shapes = read_shapes(path)
    inputs = inputs_of(state.schema)
    num_expected = num_weights(params, state.cardinalities, num_dense, inputs)
    check_size(shapes, num_expected, path)
    try:
        model = build_model(
            params, state.cardinalities, num_dense, torch.Generator(), WITHOUT_ROWS, inputs
        )
    except ConfigError as error:
        raise as_data_error(error, f"{path.with_name(MANIFEST)} says so; {RESTORE}") from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_shapes(path, shapes, expected)
    tensors = map_tensors(path)
    for name, tensor in tensors.items():
        check_finite(path, name, tensor)
    model.load_state_dict(tensors, assign=True)
    return model


def read_manifest(directory: Path) -> tuple[Manifest, Model, FeatureState]:
    """Check a bundle, and read everything but its tensors.

    Returns:
        The manifest, the parameters of its model, and the feature state.

    Raises:
        DataError: As `load_bundle` does, for all but the tensors.
    """
    path = manifest_in(directory)
    values = read_json(path, RESTORE)
    bundle_format = values.get("format") if isinstance(values, dict) else values
    if bundle_format != 1:
        raise DataError(
            f"{path}: format {shorten(bundle_format)} found, 1 expected; "
            "load it with the version of clickmill that wrote it"
        )
    if HASH_KEY in values and not is_as_written(path, values):
        raise DataError(
            f"{path} is damaged: its contents do not have the SHA-256 that it records; {RESTORE}"
        )
    manifest = check_json(Manifest, values, path, RESTORE)
    recorded = check_json(ManifestParams, {"params": manifest.params}, path, RESTORE)
    _check_files(directory, manifest)
    return manifest, recorded.params.model, FeatureState.load(directory / STATE, RESTORE)


def _check_files(directory: Path, manifest: Manifest) -> None:
    sha256_by_name = manifest.files
    for name in sha256_by_name:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(
                f"{directory / MANIFEST}: lists {shorten(name)}, which lies outside the bundle; "
                "do not use this bundle"
            )
    for path in sorted(directory.rglob("*")):
        if not path.is_symlink() and path.is_dir():
            continue
        if kind := other_kind(path):
            name = one_line(path.relative_to(directory).as_posix())
            raise DataError(f"{directory}/{name} is {kind}; {ONLY_FILES}")
    names = set(files_in(directory))
    # Each member is looked for in turn, so that an absurd number of them takes no time.
    of_members = (weights_name(member) for member in range(manifest.num_members))
    for name in chain(of_members, sha256_by_name):
        if name not in names or name not in sha256_by_name:
            missing_from = "the bundle" if name not in names else MANIFEST
            raise DataError(
                f"{directory}: {one_line(name)} is missing from {missing_from}; "
                "fetch or train the bundle again"
            )
    if (further := weights_name(manifest.num_members)) in names:
        raise DataError(
            f"{directory}/{further}: weights of a further model, but num_members in {MANIFEST} is"
            f" {manifest.num_members}; {RESTORE}"
        )
    for name in sorted(names):
        if name not in sha256_by_name:
            raise DataError(
                f"{directory}/{one_line(name)}: not listed in {MANIFEST}; "
                "remove it, or fetch the bundle again"
            )
    if mismatch := find_mismatch(directory, sha256_by_name):
        raise DataError(
            f"{mismatch.path}: SHA-256 {mismatch.actual} found, {one_line(mismatch.expected)}"
            f" expected by {MANIFEST}; fetch or train the bundle again"
        )


def files_in(directory: Path) -> list[str]:
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


def _data_hashes(features: Artifact, root: Path, params: Train) -> dict[str, str]:
    """Return the SHA-256 of what the model was made from.

    These are the feature files (without the feature state, which is in the bundle),
    the files of the raw log as the collect stage recorded them, and the manifests of the bundle
    that a warm start took its weights from and of the teachers.
    """
    hashes = {}
    if warm_start_dir := params.warm_start_dir(root):
        hashes[WARM_START_KEY] = sha256_file(manifest_in(warm_start_dir))
    for number, teacher_dir in enumerate(params.teacher_dirs(root)):
        hashes[teacher_key(number)] = sha256_file(manifest_in(teacher_dir))
    for name, file in features.files.items():
        if not name.startswith(f"{STATE}/"):
            hashes[f"{FEATURES.name}/{name}"] = file.sha256
    if (root / RAW).exists():
        for raw_file in RawManifest.read(root / RAW).files:
            hashes[f"{RAW.name}/{raw_file.name}"] = raw_file.sha256
    return hashes


def git_state(root: Path) -> Git:
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
