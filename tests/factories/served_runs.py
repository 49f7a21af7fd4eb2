"""Trainings with parameter servers whose actors are threads of this process."""

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from common.bundle_layout import HISTORY, MODEL, WEIGHTS
from common.config.params import Params
from training.loop.checkpoint import checkpoints_of
from training.servers.local_engine import LocalEngine
from training.stage import fit_on_servers


def with_servers(params: Params, servers: int, workers: int, **options: int) -> Params:
    """Return the parameters with parameter servers."""
    values = params.train.servers.model_dump() | {"servers": servers, "workers": workers} | options
    train = params.train.model_dump() | {"parallel": "servers", "servers": values}
    return Params.model_validate(params.model_dump(by_alias=True) | {"train": train})


def train_on_threads(params: Params, root: Path, engine: LocalEngine | None = None) -> None:
    """Train with parameter servers, and write the bundle."""
    checkpoints = checkpoints_of(params, "cpu", root)
    with closing(engine or LocalEngine()) as running:
        fit_on_servers(params, root, checkpoints, running)
    checkpoints.remove()


def files_of(root: Path, names: Sequence[str] = (WEIGHTS, HISTORY)) -> dict[str, bytes]:
    """Return the bytes of files of the bundle, and remove it."""
    contents = {name: (root / MODEL / name).read_bytes() for name in names}
    shutil.rmtree(root / MODEL)
    return contents
