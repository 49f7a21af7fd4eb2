"""Clusters of Ray: how they end with their driver, and how one that is running is joined."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import free_port
from tests.factories.support import ROOT, wait_for
from training.servers.ray_watchdog import NOT_STARTED

if not find_spec("ray"):
    pytest.skip("`make test-servers` installs Ray", allow_module_level=True)

pytestmark = pytest.mark.servers
DRIVER = [sys.executable, "-m", "tests.factories.ray_actors"]
GONE_WITHIN_S = 10.0
TOKEN = "1" * 64
# Ends with a line of JSON: the error of an engine with the arguments, or what two actors answer.
JOIN = """
import json, sys
from tests.factories.ray_actors import Box
from training.servers.ray_engine import RayEngine, ray
address, actors, before = sys.argv[1:]
exec(before)
try:
    engine = RayEngine(address, actors=int(actors), threads=1)
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
else:
    boxes = [engine.start(f"box {k}", Box) for k in range(2)]
    print(json.dumps([box.call("pid").result() for box in boxes]))
    engine.close()
"""
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


def environment(**more: str) -> dict[str, str]:
    """Return the environment for a program that imports this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run(code: str, *args: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end."""
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env=environment(**more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def started(*args: str, **more: str) -> tuple["subprocess.Popen[str]", list[psutil.Process]]:
    """Start a driver and wait until its actors are busy.

    Returns:
        The driver; the actors, and the other processes that it has started.
    """
    driver = subprocess.Popen(
        [*DRIVER, *args],
        env=environment(**more),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout
    words = driver.stdout.readline().split()
    assert words[:1] == ["READY"], words
    actors = [psutil.Process(int(pid)) for pid in words[1:]]
    return driver, [*psutil.Process(driver.pid).children(recursive=True), *actors]


def listens(process: psutil.Process) -> bool:
    """Return whether a process accepts TCP connections."""
    return any(one.status == psutil.CONN_LISTEN for one in process.net_connections("tcp"))


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for TMPDIR, whose path is as long as that of a cluster's folder allows."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        assert len(folder) == 16
        yield Path(folder)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_a_driver_ends(end: signal.Signals, temporary: Path) -> None:
    driver, processes = started(TMPDIR=str(temporary))
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


def test_clusters_beside_each_other_share_no_port() -> None:
    """The monitor of Ray has a port with a fixed number, which only the first cluster would get."""
    drivers, of_drivers = zip(*(started() for _ in range(2)), strict=True)
    monitors = [
        one
        for processes in of_drivers
        for one in processes
        if "autoscaler/_private/monitor.py" in " ".join(one.cmdline())
    ]
    assert len(monitors) == 2
    try:
        wait_for(lambda: all(map(listens, monitors)), timeout_s=20)
    finally:
        for driver in drivers:
            driver.kill()
    for driver, processes in zip(drivers, of_drivers, strict=True):
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


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, int]]:
    """The address of a running cluster with four CPUs, on loopback, and the id of its raylet."""
    port, folder = free_port(), Path(tempfile.mkdtemp(dir="/tmp"))
    command = (
        f"start --head --port={port} --node-ip-address=127.0.0.1 --num-cpus=4 --num-gpus=0 --block "
        f"--object-store-memory=80000000 --include-dashboard=false --temp-dir={folder} "
        f"--ray-client-server-port={free_port()}"
    )
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *command.split()],
        env=environment(
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
            RAY_USAGE_STATS_ENABLED="0",
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=TOKEN,
        ),
        stdout=(folder / "out").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline_s = time.monotonic() + 60
    raylets: list[psutil.Process] = []
    while not raylets and time.monotonic() < deadline_s and head.poll() is None:
        time.sleep(0.5)
        children = psutil.Process(head.pid).children(recursive=True)
        raylets = [child for child in children if child.name() == "raylet"]
    assert raylets, (folder / "out").read_text()
    yield f"127.0.0.1:{port}", raylets[0].pid
    children = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    head.wait(30)
    for child in psutil.wait_procs(children, timeout=10)[1]:
        child.kill()
    shutil.rmtree(folder, ignore_errors=True)


def join(
    address: str, actors: int = 2, mode: str = "token", token: str = TOKEN, before: str = ""
) -> Any:
    """Join a cluster in a process of its own; return the actors' process ids, or the error."""
    result = run(JOIN, address, str(actors), before, RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN=token)
    assert result.stdout, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_a_running_cluster_goes_on_without_our_actors(cluster: tuple[str, int]) -> None:
    address, raylet = cluster
    for _ in range(2):
        pids = join(address)
        actors = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        assert not psutil.wait_procs(actors, timeout=GONE_WITHIN_S)[1]
        assert psutil.pid_exists(raylet)


def test_a_running_cluster_goes_on_when_a_driver_is_killed(cluster: tuple[str, int]) -> None:
    address, raylet = cluster
    driver, processes = started(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    driver.kill()
    driver.wait()
    assert not psutil.wait_procs(processes, timeout=GONE_WITHIN_S)[1]
    assert psutil.pid_exists(raylet)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"token": "2" * 64}, "it refuses the token. Set RAY_AUTH_MODE=token"),
        ({"token": ""}, "it refuses the token. Set RAY_AUTH_MODE=token"),
        ({"mode": "disabled"}, "it refuses the token. Set RAY_AUTH_MODE=token"),
        ({"before": "ray.__version__ = '2.59.0'"}, "Ray: 2.60.0"),
        (
            {
                "before": "import sys; sys.version_info = (3, 9, 1); sys.version = '3.9.1'; import platform; platform.python_version = lambda: '3.9.1'"
            },
            "Python: ",
        ),
        (
            {
                "before": "from ray._private import services; services.find_node_ids = lambda: []; services.get_node_to_connect_for_driver.__defaults__ = (None, None, None, 2)"
            },
            "this machine is not one of its nodes",
        ),
        (
            {
                "actors": 5,
                "before": "import training.servers.ray_engine as e; e.PLACED_WITHIN_S = 3",
            },
            "has no room for 5 actors",
        ),
    ],
    ids=[
        "wrong token",
        "no token",
        "no mode",
        "Ray's version",
        "Python's version",
        "no node",
        "full",
    ],
)
def test_a_cluster_that_cannot_be_joined_is_named(
    cluster: tuple[str, int], options: dict[str, Any], reason: str
) -> None:
    address, raylet = cluster
    kind, message = join(address, **options)
    assert kind == "ConfigError"
    assert message.startswith("train.servers.address: ")
    assert address in message
    assert reason in message
    assert "\n" not in message
    assert psutil.pid_exists(raylet)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1", "nobody.invalid:6379"])
def test_an_address_without_a_cluster_is_named(address: str) -> None:
    kind, message = join(address)
    assert kind == "ConfigError"
    assert message.startswith(f"train.servers.address: no Ray cluster answers at {address} (")
