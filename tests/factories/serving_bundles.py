"""A small project with a bundle and its serving bundle, made once in a test session."""

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx

from common.bundle_layout import MODEL
from common.checked_json import write_checked_json
from common.config.params import Params
from common.files import sha256_file
from common.layout import SERVING
from serving.serving_bundle import MODEL_FILE, SERVING_MANIFEST, files_of
from tests.factories.models import log_lines, make_bundle, make_project
from training.export.export_model import export

NUM_ROWS = 1400
_folders: list[TemporaryDirectory[str]] = []  # removed when the process ends


class ServedProject(NamedTuple):
    """A project whose model is exported.

    Attributes:
        root: The project folder. Tests must not change it; `copy_of` makes a copy.
        params: Its parameters.
    """

    root: Path
    params: Params

    @property
    def model(self) -> Path:
        """The bundle."""
        return self.root / MODEL

    @property
    def serving(self) -> Path:
        """The serving bundle."""
        return self.root / SERVING


@cache
def served_project(seed: int = 1) -> ServedProject:
    """Return a project with random rows and a model with random weights, exported as fp32.

    Args:
        seed: Of the rows; another one gives another model.
    """
    _folders.append(TemporaryDirectory(prefix="served-"))
    root = Path(_folders[-1].name)
    params = make_project(root, log_lines(NUM_ROWS, seed))
    make_bundle(root, params)
    export(root / MODEL, root / SERVING, params.export, root)
    return ServedProject(root, params)


def copy_of(project: ServedProject, root: Path) -> ServedProject:
    """Copy a project, so that a test may change it."""
    return ServedProject(Path(shutil.copytree(project.root, root)), project.params)


def sign(directory: Path, **changes: object) -> None:
    """Write serving.json again after a file or a value has changed, so that all hashes are right."""
    values = json.loads((directory / SERVING_MANIFEST).read_text()) | changes
    values["files"] = {name: sha256_file(directory / name) for name in files_of(directory)}
    write_checked_json(directory / SERVING_MANIFEST, values)


def change_weights(directory: Path, amount: float) -> None:
    """Add a number to every bias in the model file of a serving bundle, and sign it."""
    model = onnx.load(directory / MODEL_FILE)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("bias"):
            changed = onnx.numpy_helper.to_array(tensor) + np.float32(amount)
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, directory / MODEL_FILE)
    sign(directory)
