"""A disk that is full before a night is at its end: the night fails and says so, what serves goes on serving, and the next night works."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.nightly_demo import Demo
from flows.nightly.record import PRODUCTION, nights
from tests.conftest import Project
from training.inference.bundle import load_bundle

pytestmark = pytest.mark.services

MIB, LARGE = 2**20, 2**31
ROWS = 3000
ROUNDS = 4
STEP_MIB = (
    1.5  # more each time: from the clone's first files to a stage's; with 9 a night has enough
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[float], None]]]:
    """A file system in memory, and what leaves so many MiB free on it; at first much."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", place], check=False
        ).returncode
    ):
        pytest.skip("only root can mount a file system of a known size")

    def leave(mib: float) -> None:
        found = os.statvfs(place)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        subprocess.run(["mount", "-o", f"remount,size={used + int(mib * MIB)}", place], check=True)

    try:
        yield place, leave
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_fails_the_night_and_nothing_else(
    disk: tuple[Path, Callable[[float], None]], repository: Path, environment: dict[str, str]
) -> None:
    place, leave = disk
    demo = Demo(place / "demo", ROWS, repository)
    project = Project(demo.root, environment)
    for day in range(3):
        demo.deliver(day)
    project.run("clickmill", "nightly", "run")
    for number in range(1, ROUNDS + 1):
        leave(LARGE / MIB)
        demo.deliver(3, demo.days[3][number:])  # delivered again each time
        before, done = load_bundle(demo.root / PRODUCTION).version, len(nights(demo.root))
        leave(number * STEP_MIB)
        told = project.run("clickmill", "nightly", "run", code=1)
        assert "No space left on device" in told or "Out of diskspace" in told, told
        assert load_bundle(demo.root / PRODUCTION).version == before
        assert len(nights(demo.root)) == done
        leave(LARGE / MIB)
        assert project.run("git", "status", "--porcelain") == ""
        project.run("clickmill", "nightly", "run")
        made = nights(demo.root)
        assert len(made) == done + 1
        assert load_bundle(demo.root / PRODUCTION).version == (
            made[-1].version if made[-1].outcome == "promoted" else before
        )
