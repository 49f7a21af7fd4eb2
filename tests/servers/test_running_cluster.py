"""A cluster that is running already: how an engine joins it, and what it leaves as it is."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import free_port
from tests.factories.ray_drivers import GONE_WITHIN_S, Started, environment, run
from tests.factories.support import children_where

if not find_spec("ray"):
    pytest.skip("`make test-servers` installs Ray", allow_module_level=True)

pytestmark = pytest.mark.servers
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
        raylets = children_where(
            lambda child: child.name() == "raylet", psutil.Process(head.pid), recursive=True
        )
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


def test_a_running_cluster_goes_on_when_a_driver_is_killed(
    cluster: tuple[str, int], start_driver: Callable[..., Started]
) -> None:
    address, raylet = cluster
    driver, processes = start_driver(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
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
