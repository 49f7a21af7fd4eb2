"""A full disk: the nightly run fails and reports it, and the next run succeeds."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.nightly_demo import Demo
from flows.nightly.record import PRODUCTION
from flows.nightly.repository import NightlyRepository
from tests.conftest import Project
from tests.factories.small_disk import small_disk
from training.inference.bundle import load_bundle

pytestmark = pytest.mark.services

MIB, LARGE = 2**20, 2**31
NUM_ROWS = 3000
NUM_ROUNDS = 4
# Each round leaves this much more: from too little for the clone to too little for a stage. With
# 9 MiB a nightly run has enough.
STEP_MIB = 1.5


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[float], None]]]:
    """A file system in memory, and a function that leaves a number of MiB free on it."""
    with small_disk(tmp_path / "disk", LARGE) as leave:
        yield tmp_path / "disk", lambda mib: leave(int(mib * MIB))


def test_a_full_disk_fails_the_nightly_run_and_nothing_else(
    disk: tuple[Path, Callable[[float], None]], repository: Path, environment: dict[str, str]
) -> None:
    place, leave = disk
    demo = Demo(place / "demo", NUM_ROWS, repository)
    project, nightly = Project(demo.root, environment), NightlyRepository(demo.root)
    for day in range(3):
        demo.deliver(day)
    project.run("clickmill", "nightly", "run")
    for round_number in range(1, NUM_ROUNDS + 1):
        leave(LARGE / MIB)
        demo.deliver(3, demo.days[3][round_number:])  # another file each time
        before, num_runs = load_bundle(demo.root / PRODUCTION).version, len(nightly.runs())
        leave(round_number * STEP_MIB)
        output = project.run("clickmill", "nightly", "run", code=1)
        assert "No space left on device" in output or "Out of diskspace" in output, output
        assert load_bundle(demo.root / PRODUCTION).version == before
        assert len(nightly.runs()) == num_runs
        leave(LARGE / MIB)
        assert project.run("git", "status", "--porcelain") == ""
        project.run("clickmill", "nightly", "run")
        runs = nightly.runs()
        assert len(runs) == num_runs + 1
        expected = runs[-1].version if runs[-1].outcome == "promoted" else before
        assert load_bundle(demo.root / PRODUCTION).version == expected
