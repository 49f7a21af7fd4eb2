"""A cluster of an engine's own: how it starts, and how it ends with its driver."""

import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.factories.ray_drivers import GONE_WITHIN_S, Started, run
from training.servers.ray_watchdog import NOT_STARTED

if not find_spec("ray"):
    pytest.skip("`make test-servers` installs Ray", allow_module_level=True)

pytestmark = pytest.mark.servers
TWICE = """
from tests.factories.ray_actors import Box
from training.servers.ray_engine import RayEngine
for number in range(2):
    engine = RayEngine(None, actors=1, threads=1)
    print(engine.start("box", Box).call("echo", number).result(), engine._own.folder.is_dir())
    folder = engine._own.folder
    engine.close()
    engine.close()
    print(folder.exists())
"""
LOSE = """
import psutil, sys
from tests.factories.ray_actors import Box
from training.servers.ray_engine import RayEngine
engine = RayEngine(None, actors=1, threads=1)
pending = engine.start("box", Box).call("sleep", 1000.0)
(server,) = [one for one in psutil.Process().children() if one.name() == sys.argv[1]]
server.kill()
try:
    while not engine.wait_any([pending], 0.1):
        pass
finally:
    engine.close()
"""
# Starts an engine, but kills the raylet before Ray calls a function of its own.
START = """
import importlib, sys, time, types
import psutil
from training.servers.ray_engine import RayEngine, ray
module, function = importlib.import_module(sys.argv[1]), sys.argv[2]
original = getattr(module, function)

def patched(*args, **options):
    setattr(module, function, original)
    raylets = [one for one in psutil.Process().children() if one.name() == "raylet"]
    raylets[0].kill()
    psutil.wait_procs(raylets, timeout=20)
    # The half minute that Ray gives its node is over; Ray's C++ has a variable for it.
    late = {"monotonic": lambda: time.monotonic() + 30}
    ray._private.node.time = types.SimpleNamespace(**{**vars(time), **late})
    return original(*args, **options)

setattr(module, function, patched)
RayEngine(None, actors=1, threads=1)
"""
# Starts an actor after the GCS has ended, which nobody has noticed.
START_ACTOR = """
import psutil
from tests.factories.ray_actors import Box
from training.servers import ray_engine
engine = ray_engine.RayEngine(None, actors=1, threads=1)
gcs = [one for one in psutil.Process().children() if one.name() == "gcs_server"]
gcs[0].kill()
psutil.wait_procs(gcs, timeout=20)
ray_engine._local_servers.processes = []
engine.start("box", Box)
"""
WAIT = """
import sys, threading
import psutil
from tests.factories.ray_actors import Box
from training.servers.ray_engine import RayEngine

engine = RayEngine(None, actors=1, threads=1)
pending = engine.start("box", Box).call("sleep", 1000.0)
(server,) = [one for one in psutil.Process().children() if one.name() == sys.argv[1]]
threading.Timer(3, server.kill).start()
try:
    pending.result()
finally:
    engine.close()
"""
REACHABLE = """
import ray
from training.servers.ray_engine import RayEngine
RayEngine(None, actors=1, threads=1)
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for TMPDIR, whose path is as long as that of a cluster's folder allows."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        assert len(folder) == 16
        yield Path(folder)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_a_driver_ends(
    end: signal.Signals, temporary: Path, start_driver: Callable[..., Started]
) -> None:
    driver, processes = start_driver(TMPDIR=str(temporary))
    assert {"gcs_server", "raylet"} < {process.name() for process in processes}
    (folder,) = temporary.glob("clickmill-ray-*")
    driver.send_signal(end)
    assert driver.wait(60) != 0
    _, left = psutil.wait_procs(processes, timeout=GONE_WITHIN_S)
    assert not left
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while folder.exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not folder.exists()


def test_clusters_run_beside_each_other(start_driver: Callable[..., Started]) -> None:
    for driver, processes in [start_driver() for _ in range(2)]:
        assert driver.poll() is None
        driver.kill()
        driver.wait()
        assert not psutil.wait_procs(processes, timeout=GONE_WITHIN_S)[1]


def test_one_engine_after_the_other_in_one_process() -> None:
    result = run(TWICE)
    assert result.stdout.split() == ["0", "True", "False", "1", "True", "False"], result.stderr


@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_the_end_of_the_cluster_is_named(server: str) -> None:
    result = run(LOSE, server)
    assert result.stderr.splitlines()[-1].startswith(
        f"ConnectionError: {server}, a process of the Ray cluster on this machine, has ended"
    )


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("ray._private.services", "get_node"),
        ("ray._private.worker", "connect"),
    ],
)
def test_a_cluster_that_does_not_start_is_named(
    module: str, function: str, temporary: Path
) -> None:
    """Ray raises an error while it waits for its node; later it ends this process by itself."""
    wait = {"RAY_raylet_start_wait_time_s": "3"} if function == "get_node" else {}
    result = run(START, module, function, TMPDIR=str(temporary), **wait)
    assert result.returncode == 1
    last_line = result.stderr.splitlines()[-1]
    if function == "get_node":
        reason = "ConnectionError: the Ray cluster on this machine did not start (The current node"
        assert last_line.startswith(reason), result.stderr
    else:
        assert "core_worker_process.cc" in result.stderr
        assert last_line == NOT_STARTED
    assert not [*temporary.glob("clickmill-ray-*")]


def test_an_actor_that_does_not_start_is_named(temporary: Path) -> None:
    """Ray ends the process itself when it does not reach the GCS."""
    result = run(START_ACTOR, TMPDIR=str(temporary))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == NOT_STARTED
    assert not [*temporary.glob("clickmill-ray-*")]


def test_a_call_that_waits_ends_with_the_cluster() -> None:
    result = run(WAIT, "raylet")
    # whichever is noticed first: the end of the actor, or that of the cluster
    assert re.match(r"(ConnectionError|.*ActorLost): ", result.stderr.splitlines()[-1])


def test_a_cluster_that_others_can_reach_is_refused(temporary: Path) -> None:
    """Ray that was imported before takes the address of this machine."""
    result = run(REACHABLE, TMPDIR=str(temporary))
    last_line = result.stderr.splitlines()[-1]
    assert last_line.startswith("ConnectionError: Ray 2."), result.stderr
    assert "listens beyond this machine: " in last_line
    assert not [*temporary.glob("clickmill-ray-*")]
