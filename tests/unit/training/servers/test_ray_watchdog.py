import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.servers.ray_watchdog import TOKEN_FILE, TOKEN_VARIABLE, processes_of, start_watchdog

SLEEP = [sys.executable, "-c", "import time; print(flush=True); time.sleep(1000)"]
# Starts a watchdog and a process of a cluster, and is killed then.
DRIVER = """
import os, signal, subprocess, sys
from pathlib import Path
from training.servers.ray_watchdog import TOKEN_FILE, TOKEN_VARIABLE, start_watchdog
folder = Path(sys.argv[1])
start_watchdog(folder)
subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(1000)"],
    env={**os.environ, TOKEN_VARIABLE: str(folder / TOKEN_FILE)},
)
os.kill(os.getpid(), signal.SIGKILL)
"""


def sleeper(folder: Path) -> "subprocess.Popen[bytes]":
    """Start a process of the cluster with this folder."""
    environment = {**os.environ, TOKEN_VARIABLE: str(folder / TOKEN_FILE)}
    process = subprocess.Popen(SLEEP, env=environment, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a cluster."""
    folder = tmp_path / "cluster"
    (folder / "ray").mkdir(parents=True)
    return folder


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of another cluster."""
    process = sleeper(tmp_path / "cluster 2")
    yield process
    process.kill()
    process.wait()


def test_the_watchdog_ends_its_cluster_only(
    folder: Path, stranger: "subprocess.Popen[bytes]"
) -> None:
    ours = [sleeper(folder) for _ in range(2)]
    assert {process.pid for process in processes_of(folder)} == {one.pid for one in ours}
    watchdog = start_watchdog(folder)
    with pytest.raises(subprocess.TimeoutExpired):
        watchdog.wait(1)
    assert [one.poll() for one in ours] == [None, None]
    watchdog.communicate(timeout=20)
    assert [one.wait(5) for one in ours] == [-9, -9]
    assert stranger.poll() is None
    assert not folder.exists()


def test_the_watchdog_acts_when_the_driver_is_killed(folder: Path) -> None:
    driver = subprocess.run([sys.executable, "-c", DRIVER, str(folder)], capture_output=True)
    assert driver.returncode == -9
    deadline_s = time.monotonic() + 20
    while folder.exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not folder.exists()
    assert not processes_of(folder)
