"""The serving bundle: a folder with everything that a process without PyTorch needs to score rows.

    model.onnx         the model: ids and dense inputs -> click probability
    model.onnx.data    its weights, if they are not in model.onnx
    model.pt2          instead of both, if it was exported for AOTInductor: machine code
    state/             the feature state, schema included
    serving.json       the manifest: which model it is, how it was exported, how far its scores are
                       from those of PyTorch, and the SHA-256 of all other files and of itself

A model that is not exported has, where the stage `export` writes its output, a folder with the file
not_exported.txt instead, which says why.

`clickmill export` makes it from a bundle. Nothing in it is ever executed, except for model.pt2, and
it contains no path of the machine that made it: the same bundle gives the same bytes.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field

from common.checked_json import is_as_written
from common.config.base import Positive, Strict
from common.config.loading import check_json, one_line, shorten
from common.config.params import MlpFormat, TableFormat
from common.files import DataError, other_kind, read_json
from common.hashed_files import find_mismatch
from features.encode.feature_state import FeatureState

SERVING_MANIFEST = "serving.json"
MODEL_FILE = "model.onnx"
PACKAGE_FILE = "model.pt2"
NOT_EXPORTED = "not_exported.txt"
STATE = "state"
SUFFIX = ".serving"  # of the folder beside a bundle that has its serving bundle
RESTORE = "export the model again (clickmill export), or copy the serving bundle again"


class Parity(Strict):
    """The comparison of the exported model with PyTorch, which computes the same formats.

    Attributes:
        rows: The number of test rows that both scored.
        max_difference: The largest difference between two scores of a row.
    """

    rows: Annotated[int, Field(ge=0)]
    max_difference: Annotated[float, Field(ge=0, le=1)]


class Logloss(Strict):
    """The logloss of the test rows, in nats.

    Attributes:
        trained: Of the model that was exported, with PyTorch.
        exported: Of the exported model.
    """

    trained: float
    exported: float


class ServingManifest(Strict):
    """The contents of serving.json.

    Attributes:
        format: Version of this format.
        model_version: The version of the bundle that was exported.
        runtime: What runs the model file: ONNX Runtime, or PyTorch's AOTInductor.
        opset: The version of ONNX's operators in the model file; None for AOTInductor.
        tables: The format of the numbers in the embedding tables; fp32: that of the bundle.
        mlps: The format of the weights of the linear layers; fp32: that of the bundle.
        short_rows: The parameter `ingest.short_rows` of the bundle.
        versions: Package -> version that exported the model.
        parity: How far the scores are from those of PyTorch.
        logloss: What the formats cost.
        files: File of the serving bundle -> SHA-256, in hex.
        sha256: The SHA-256 of all of the above (common/checked_json.py).
    """

    format: Literal[1]
    model_version: str
    runtime: Literal["onnx", "aoti"]
    opset: Positive | None
    tables: TableFormat
    mlps: MlpFormat
    short_rows: Literal["quarantine", "fill"]
    versions: dict[str, str]
    parity: Parity
    logloss: Logloss
    files: dict[str, str]
    sha256: str

    @property
    def model_file(self) -> str:
        """The name of the model file."""
        return MODEL_FILE if self.runtime == "onnx" else PACKAGE_FILE

    @property
    def version(self) -> str:
        """The model version, with the formats of the numbers if they are not those of training."""
        formats = [name for name in (self.tables, self.mlps) if name != "fp32"]
        return "-".join([self.model_version, *formats])


@dataclass(frozen=True)
class ServingBundle:
    """A serving bundle whose files were checked.

    Attributes:
        directory: The folder.
        manifest: Its manifest.
        state: The feature state that encodes rows for its model.
    """

    directory: Path
    manifest: ServingManifest
    state: FeatureState

    @property
    def model_path(self) -> Path:
        """The model file."""
        return self.directory / self.manifest.model_file


def find_serving_bundle(path: Path) -> Path:
    """Return the folder of the serving bundle that a path names, with all links followed.

    Args:
        path: A serving bundle, or a bundle that has its serving bundle beside it: that of `DIR` is
            `DIR.serving`. It may be a link, such as artifacts/production.

    Raises:
        DataError: There is none.
    """
    directory = path.resolve()
    if (directory / SERVING_MANIFEST).is_file():
        return directory
    if beside := find_beside(directory):
        return beside
    for folder in (directory, directory.with_name(directory.name + SUFFIX)):
        if reason := reason_not_exported(folder):
            raise DataError(f"{path}: no serving bundle here: {reason}")
    raise DataError(
        f"{path}: no serving bundle here ({SERVING_MANIFEST} not found in it or in"
        f" {directory}{SUFFIX}); make one: clickmill export --model {path} --output"
        f" {directory}{SUFFIX}"
    )


def find_beside(bundle: Path) -> Path | None:
    """Return the serving bundle beside a bundle, None if there is none."""
    beside = bundle.with_name(bundle.name + SUFFIX)
    return beside if (beside / SERVING_MANIFEST).is_file() else None


def reason_not_exported(directory: Path) -> str | None:
    """Return the line of not_exported.txt, which begins with `model VERSION: `; None without it."""
    path = directory / NOT_EXPORTED
    return one_line(path.read_text(errors="replace")) if path.is_file() else None


def load_serving_bundle(directory: Path) -> ServingBundle:
    """Check every file of a serving bundle, and read its manifest and its feature state.

    Raises:
        DataError: A file is missing, not listed, no file or has another hash, or the manifest or
            the feature state has contents that no serving bundle has.
    """
    manifest = read_serving_manifest(directory)
    _check_files(directory, manifest)
    return ServingBundle(directory, manifest, FeatureState.load(directory / STATE, RESTORE))


def read_serving_manifest(directory: Path) -> ServingManifest:
    """Read the manifest of a serving bundle, without a check of the other files.

    Raises:
        DataError: It is missing, damaged or from another version of clickmill.
    """
    path = directory / SERVING_MANIFEST
    values = read_json(path, RESTORE)
    found = values.get("format") if isinstance(values, dict) else values
    if found != 1:
        raise DataError(
            f"{path}: format {shorten(found)} found, 1 expected; serve it with the version of"
            " clickmill that exported it"
        )
    if not is_as_written(path, values):
        raise DataError(
            f"{path} is damaged: its contents do not have the SHA-256 that it records; {RESTORE}"
        )
    return check_json(ServingManifest, values, path, RESTORE)


def files_of(directory: Path) -> list[str]:
    """List the files of a serving bundle except the manifest, relative to it and sorted."""
    paths = (path for path in directory.rglob("*") if not path.is_dir() or path.is_symlink())
    names = (path.relative_to(directory).as_posix() for path in paths)
    return sorted(name for name in names if name != SERVING_MANIFEST)


def _check_files(directory: Path, manifest: ServingManifest) -> None:
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(
                f"{directory / SERVING_MANIFEST}: lists {shorten(name)}, which lies outside the"
                " serving bundle; do not use it"
            )
    names = files_of(directory)
    for name in names:
        if kind := other_kind(directory / name):
            raise DataError(f"{directory}/{one_line(name)} is {kind}; {RESTORE}")
    for name in sorted({manifest.model_file, *names} ^ {*manifest.files}):
        where = SERVING_MANIFEST if name in names else "the serving bundle"
        raise DataError(f"{directory}: {one_line(name)} is missing from {where}; {RESTORE}")
    if mismatch := find_mismatch(directory, manifest.files):
        raise DataError(
            f"{mismatch.path}: SHA-256 {mismatch.actual} found, {one_line(mismatch.expected)}"
            f" expected by {SERVING_MANIFEST}; {RESTORE}"
        )
