"""The train stage with parameter servers on Ray: whole runs, stopped ones, and a frozen server."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from common.config.params import Params
from tests.factories.ray_runs import make_short_training, run_processes, start
from tests.factories.served_runs import files_of, with_servers, with_train
from tests.factories.support import wait_for
from training.loop.checkpoint import checkpoints_of
from training.servers import session
from training.servers.table_server import TableServer
from training.servers.traffic import TRAFFIC
from training.stage import train

if not find_spec("ray"):
    pytest.skip("`make test-servers` installs Ray", allow_module_level=True)

pytestmark = pytest.mark.servers
FROZEN = "frozen"  # exists below the project's root as soon as a server has been frozen


class FreezingServer(TableServer):
    """A table server whose process stops at the first barrier of the run."""

    def __init__(self, params: Params, root: Path, server: int, num_servers: int) -> None:
        super().__init__(params, root, server, num_servers)
        self.mark = root / FROZEN

    def barrier(self) -> None:
        if self.server == 1 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        super().barrier()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A folder with features, and parameters of a short training."""
    root = tmp_path_factory.mktemp("project")
    return root, make_short_training(root)


@pytest.fixture(scope="module")
def expected(project: tuple[Path, Params]) -> dict[str, bytes]:
    """The files of a single device."""
    train(project[1], project[0])
    return files_of(project[0])


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
    wait_for(lambda: not run_processes(), timeout_s=30)


def test_a_run_that_is_stopped_leaves_nothing_and_goes_on(
    project: tuple[Path, Params], expected: dict[str, bytes]
) -> None:
    root, params = project
    params = with_servers(with_train(params, checkpoint_minutes=1e-6), 2, 2)
    checkpoints = checkpoints_of(params, "cpu", root)
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        run = start(root, params)
        assert run.stdout
        output = ""
        while "validation at step" not in output or not checkpoints.last():
            line = run.stdout.readline()
            assert line, output
            output += line
        run.send_signal(sent)
        output += run.communicate(timeout=60)[0]
        assert run.returncode
        assert "Traceback" not in output
        assert ("resumes at step" in output) == (sent != signal.SIGINT)  # from the one before
        wait_for(lambda: not run_processes(), timeout_s=30)
    run = start(root, params)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert "resumes at step" in output
    assert files_of(root) == expected


def test_a_frozen_server_is_replaced(
    project: tuple[Path, Params],
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root, params = project
    monkeypatch.setattr(session, "TableServer", FreezingServer)
    monkeypatch.setattr(session, "STALLED_S", 30.0)
    train(with_servers(params, 2, 2), root)
    assert (root / FROZEN).exists()
    assert "table server 1 was lost: it did not answer for 30 s, and was ended" in caplog.text
    assert files_of(root) == expected
