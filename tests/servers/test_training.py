"""The train stage with parameter servers on Ray: whole runs, and processes that are killed."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from common.bundle_layout import HISTORY, WEIGHTS
from common.config.params import Params
from tests.factories.models import log_lines, make_project
from tests.factories.served_runs import files_of, with_servers, with_train
from tests.factories.support import ROOT, wait_for
from training.servers.traffic import TRAFFIC
from training.stage import train

if not find_spec("ray"):
    pytest.skip("`make test-servers` installs Ray", allow_module_level=True)

pytestmark = pytest.mark.servers
CLICKMILL = [sys.executable, "-c", "from flows.cli.main import app; app()"]
MARK = "CLICKMILL_TEST_RUN"  # an environment variable of all processes of a run
NUM_KILLS = 20
FAILURE = re.compile(r"clickmill: error: training with parameter servers failed: \w")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A folder with features, and parameters of a short training."""
    root = tmp_path_factory.mktemp("project")
    params = make_project(root, log_lines(4200, seed=1))
    return root, with_train(params, epochs=2, validations=4, logger="none", threads=1)


@pytest.fixture(scope="module")
def expected(project: tuple[Path, Params]) -> dict[str, bytes]:
    """The files of a single device."""
    train(project[1], project[0])
    return files_of(project[0])


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Check after each test that no process of a run is left."""
    yield
    wait_for(lambda: not run_processes(), timeout_s=30)


def run_processes() -> list[psutil.Process]:
    """Return the processes of the train stages of this file, those of Ray included."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.environ().get(MARK) == str(os.getpid()):
                found.append(process)
    return found


def victims() -> list[psutil.Process]:
    """Return the processes of actors, and Ray's agents, without which their machine is lost.

    There are none before the first actor: while Ray starts, it ends the driver with a line of its
    own if one of them is killed.
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


def test_processes_train_the_model_of_a_single_device(
    project: tuple[Path, Params], expected: dict[str, bytes]
) -> None:
    root, params = project
    run = start(root, with_servers(params, 2, 2))
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert "parameter servers: 30 steps; in a step 0." in output
    assert (root / TRAFFIC).exists()
    assert files_of(root) == expected


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_nothing_and_goes_on(
    project: tuple[Path, Params], expected: dict[str, bytes], sent: signal.Signals
) -> None:
    root, params = project
    params = with_servers(with_train(params, checkpoint_minutes=1e-6), 2, 2)
    run = start(root, params)
    assert run.stdout
    output = ""
    while "validation at step" not in output:
        line = run.stdout.readline()
        assert line, output
        output += line
    run.send_signal(sent)
    output += run.communicate(timeout=60)[0]
    assert run.returncode
    assert "Traceback" not in output
    wait_for(lambda: not run_processes(), timeout_s=30)
    run = start(root, params)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert "resumes at step" in output
    assert files_of(root) == expected


def test_kills_at_random_moments_end_with_a_model_or_a_named_failure(
    project: tuple[Path, Params],
) -> None:
    root, params = project
    params = with_train(params, batch_size=16, epochs=8, checkpoint_minutes=1e-6)
    params = with_servers(params, 2, 2, staleness=3)
    rng = random.Random(1)
    kills = models = 0
    deadline_s = time.monotonic() + 900
    while kills < NUM_KILLS or not models:
        assert time.monotonic() < deadline_s
        run = start(root, params)
        while run.poll() is None:
            try:
                output, _ = run.communicate(timeout=rng.uniform(1, 6))
                break
            except subprocess.TimeoutExpired:
                if kills < NUM_KILLS and (running := victims()):
                    rng.choice(running).kill()
                    kills += 1
        output = output if run.returncode is not None else run.communicate()[0]
        assert "Traceback" not in output, output
        if run.returncode:
            assert FAILURE.search(output), output
            continue
        models += 1
        history = files_of(root, [HISTORY, WEIGHTS])[HISTORY].decode().splitlines()
        assert history[-1].startswith("1800,valid,0.")
        assert float(history[-1].split(",")[2]) < 0.75
