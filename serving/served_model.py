"""A served model: a serving bundle that was checked and loaded, and the path it is read from.

The files of a serving bundle may change under the server: a promotion lets the path lead to another
one, a copy may be half done, and a program may write into a file whose pages ONNX Runtime has
mapped. So a bundle is first copied into a private folder, and the copy is checked and loaded. What
was checked is then what answers, whatever becomes of the bundle. The copy is removed as soon as it
is loaded; the kernel keeps the pages that are still mapped.
"""

import os
import shutil
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from common.bundle_layout import MANIFEST, version_of
from common.files import DataError, other_kind
from common.logs import get_logger
from common.printable import first_line
from features.online.encoder import RequestEncoder
from features.schema.schema import Schema
from serving.options import COPY_PREFIX
from serving.runtime import Runtime
from serving.serving_bundle import (
    RESTORE,
    SERVING_MANIFEST,
    find_serving_bundle,
    load_serving_bundle,
    read_serving_manifest,
)

WARM_ROWS = (1, 16, 256)  # sizes of batches for which the runtime lays out its memory

log = get_logger("serve")


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that can answer requests. It never changes; another one takes its place.

    Attributes:
        version: The version of the serving bundle.
        schema: The schema of its log.
        encoder: What makes its inputs of the rows of a request.
        runtime: What computes its scores.
    """

    version: str
    schema: Schema
    encoder: RequestEncoder
    runtime: Runtime


@dataclass(frozen=True)
class BundleState:
    """The state of the serving bundle at a path, without the contents of large files.

    Attributes:
        directory: The folder of the serving bundle.
        manifest: The bytes of its manifest.
        files: Name, size, time of the last change and inode of each file.
    """

    directory: Path
    manifest: bytes
    files: tuple[tuple[str, int, int, int], ...]


def look_at(path: Path) -> BundleState:
    """Return what a path leads to now.

    Raises:
        DataError: There is no serving bundle, or it was exported from another model than that of
            the bundle which it lies beside.
        OSError: It cannot be read, or it vanished meanwhile.
    """
    directory = find_serving_bundle(path)
    if kind := other_kind(directory / SERVING_MANIFEST):
        raise DataError(f"{directory / SERVING_MANIFEST} is {kind}; {RESTORE}")
    _check_is_of_bundle(directory, path)
    files = []
    for file in sorted(directory.rglob("*")):
        status = file.stat(follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            name = file.relative_to(directory).as_posix()
            files.append((name, status.st_size, status.st_mtime_ns, status.st_ino))
    return BundleState(directory, (directory / SERVING_MANIFEST).read_bytes(), tuple(files))


def _check_is_of_bundle(directory: Path, path: Path) -> None:
    bundle = path.resolve()
    if bundle == directory or not (bundle / MANIFEST).is_file():
        return
    version, exported = version_of(bundle), read_serving_manifest(directory).model_version
    if version != exported:
        raise DataError(
            f"{directory} was exported from model {exported}, but {path} is model {version}; export"
            f" it again: clickmill export --model {path} --output {directory}"
        )


def load_model(directory: Path) -> ServedModel:
    """Copy a serving bundle, check each file of the copy, load it, and score a few rows.

    Raises:
        DataError: The bundle is incomplete or damaged, or it cannot be served.
        OSError: It cannot be read, or there is no space for the copy.
    """
    with TemporaryDirectory(prefix=f"{COPY_PREFIX}{os.getpid()}-") as folder:
        copy = Path(folder) / directory.name
        _copy_files(directory, copy)
        try:
            bundle = load_serving_bundle(copy)
            if bundle.manifest.runtime != "onnx":
                raise DataError(
                    f"{directory}: a model file for {bundle.manifest.runtime}, which the server"
                    " cannot run; export it with --runtime onnx"
                )
            runtime = Runtime(bundle.model_path)
        except DataError as error:
            raise DataError(str(error).replace(str(copy), str(directory))) from None
    encoder = RequestEncoder(bundle.state, bundle.manifest.short_rows)
    model = ServedModel(bundle.manifest.version, bundle.state.schema, encoder, runtime)
    _try(model, directory)
    return model


def _copy_files(directory: Path, copy: Path) -> None:
    copy.mkdir()
    for file in sorted(directory.rglob("*")):
        target = copy / file.relative_to(directory)
        if file.is_dir() and not file.is_symlink():
            target.mkdir()
        elif kind := other_kind(file):  # to open a pipe might wait forever
            raise DataError(f"{file} is {kind}; {RESTORE}")
        else:
            shutil.copyfile(file, target)


def _try(model: ServedModel, directory: Path) -> None:
    """Score a few rows, so that a model that cannot score is refused and the first answer is fast.

    Raises:
        DataError: The model does not fit its feature state.
    """
    widths = len(model.schema.dense_features), len(model.schema.categorical_features)
    try:
        for num_rows in WARM_ROWS:
            scores = model.runtime.scores(
                np.zeros((num_rows, widths[0]), np.float32),
                np.zeros((num_rows, widths[1]), np.int32),
            )
            if scores.shape != (num_rows,) or not np.isfinite(scores).all():
                raise ValueError(f"{num_rows} rows gave scores of shape {scores.shape}")
        model.encoder.encode_records([dict.fromkeys(model.encoder.columns)])
    except Exception as error:  # ONNX Runtime has many types of its own, without a common one
        raise DataError(
            f"{directory}: the model cannot score the rows of its feature state"
            f" ({first_line(error)}); {RESTORE}"
        ) from None


class ModelSource:
    """A path, and the model that was loaded from it last.

    Attributes:
        path: A serving bundle, a bundle that has one beside it, or a link to one of them.
        model: The model that answers now; None until one was loaded. It is replaced by one
            assignment, so whoever reads it once has one model from beginning to end.
        fault: Why the path does not lead to a model that could be loaded; None if it does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model: ServedModel | None = None
        self.fault: str | None = None
        self._seen: BundleState | None = None
        self._lock = threading.Lock()

    def refresh(self) -> bool | None:
        """Look whether the path leads to something new, and load it. It may take seconds.

        A bundle that cannot be loaded is tried again when something about its files has changed.

        Returns:
            True if a model was loaded, False if that failed; None if there was nothing new.
        """
        with self._lock:
            try:
                state = look_at(self.path)
            except Exception as error:  # whatever there is, the old model goes on
                self._seen = None
                return self._fail(error)
            if state == self._seen:
                return None
            self._seen = state
            try:
                model = load_model(state.directory)
            except Exception as error:
                if isinstance(error, OSError):
                    self._seen = None  # only this moment may be at fault, such as a full disk
                return self._fail(error)
            before, self.model, self.fault = self.model, model, None
        if before is None or before.version != model.version:
            log.info("%s: model %s is loaded", self.path, model.version)
        return True

    def _fail(self, error: Exception) -> bool | None:
        fault = str(error) if isinstance(error, DataError) else f"{self.path}: {first_line(error)}"
        if fault == self.fault:
            return None
        self.fault = fault
        stays = f"; model {self.model.version} goes on" if self.model else ""
        log.warning("%s%s", fault, stays)
        return False
