"""Train stages with parameter servers on Ray, in processes of their own, and what they start."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from common.config.params import Params
from tests.factories.models import log_lines, make_project
from tests.factories.served_runs import with_train
from tests.factories.support import ROOT

CLICKMILL = [sys.executable, "-c", "from flows.cli.main import app; app()"]
MARK = "CLICKMILL_TEST_RUN"  # an environment variable of all processes of a run


def make_short_training(root: Path) -> Params:
    """Write features below root; return the parameters of a short training."""
    params = make_project(root, log_lines(4200, seed=1))
    return with_train(params, epochs=2, validations=4, logger="none", threads=1)


def run_processes() -> list[psutil.Process]:
    """Return the processes of the train stages of this test process, those of Ray included."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.environ().get(MARK) == str(os.getpid()):
                found.append(process)
    return found


def victims() -> list[psutil.Process]:
    """Return the processes of actors, and Ray's agents, without which their machine is lost.

    There are none before the first actor: a start of Ray that fails has tests of its own, and it
    fails only after half a minute.
    """
    found = [process for process in run_processes() if process.name().startswith("ray::")]
    has_actors = any(process.name().startswith("ray::_Host") for process in found)
    return found if has_actors else []


def start(root: Path, params: Params) -> "subprocess.Popen[str]":
    """Start the train stage in a process of its own."""
    with (root / "params.yaml").open("w") as file:
        YAML().dump(params.model_dump(mode="json", by_alias=True), file)
    return subprocess.Popen(
        [*CLICKMILL, "stage", "train"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT), MARK: str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
