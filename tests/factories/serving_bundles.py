"""A small project with a bundle and its serving bundle, made once in a test session."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from common.bundle_layout import MODEL
from common.config.params import Params
from common.layout import SERVING
from tests.factories.models import log_lines, make_bundle, make_project
from training.export.stage import export

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
