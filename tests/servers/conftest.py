"""A fixture for drivers with busy actors of Ray."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.factories.ray_drivers import Started, environment
from tests.factories.support import ROOT


@pytest.fixture
def start_driver() -> Iterator[Callable[..., Started]]:
    """A function that starts a driver and waits until its actors are busy.

    It returns the driver, and its actors and the other processes that it has started. A driver that
    a test leaves is killed.
    """
    drivers = []

    def start(*args: str, **more: str) -> Started:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.factories.ray_actors", *args],
            env=environment(**more),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        drivers.append(driver)
        assert driver.stdout
        words = driver.stdout.readline().split()
        assert words[:1] == ["READY"], words
        actors = [psutil.Process(int(pid)) for pid in words[1:]]
        return driver, [*psutil.Process(driver.pid).children(recursive=True), *actors]

    yield start
    for driver in drivers:
        driver.kill()
        driver.wait()
