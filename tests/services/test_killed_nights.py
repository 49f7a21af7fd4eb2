"""Nights whose processes are killed, one at random at a random moment, over and over: what serves is always whole and one of two, no
version is half-registered, and the next night works.

Needs no service but time: some 15 minutes. CLICKMILL_KILLS says how many times.
"""

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from flows.nights.demo import Demo
from flows.nights.record import PRODUCTION, nights
from flows.nights.registry import NAME, assignments
from tests.conftest import Project
from tests.support import still_running
from training.bundle import load_bundle

pytestmark = pytest.mark.services

NUM_KILLS = int(os.environ.get("CLICKMILL_KILLS", "30"))
ROWS, LONGEST_S = 1500, 25.0


def serving(root: Path) -> str | None:
    """The version of the bundle that artifacts/production is, all of it checked."""
    return load_bundle(root / PRODUCTION).version if (root / PRODUCTION).exists() else None


def test_a_night_survives_what_it_is_killed_by(tmp_path: Path, repository: Path, environment: dict[str, str]) -> None:
    draw = random.Random(1)
    demo = Demo(tmp_path / "demo", ROWS, repository)
    project = Project(demo.root, environment)
    for day in range(3):
        demo.deliver(day)
    project.run("clickmill", "night")
    for kill in range(NUM_KILLS):
        demo.deliver(3, demo.days[3][: ROWS - kill - 1])  # delivered again each time
        before, done = serving(demo.root), len(nights(demo.root))
        night = project.start("clickmill", "night")
        time.sleep(draw.uniform(0, LONGEST_S))
        family = [process for process in [psutil.Process(night.pid), *psutil.Process(night.pid).children(recursive=True)] if alive(process)]
        if family:
            draw.choice(family).send_signal(signal.SIGKILL)
        output, _ = night.communicate(timeout=300)
        assert not still_running(family, within_s=20)
        made = nights(demo.root)
        assert serving(demo.root) in {before, *(one.version for one in made[done:])}, output
        project.run("clickmill", "night")
        assert len(nights(demo.root)) > done
        check_whole(project)


def check_whole(project: Project) -> None:
    """Each night that has a model has its version, and what serves is what the last assignment says."""
    made = nights(project.root)
    versions = set(project.run("git", "tag", "--list", f"{NAME}@*").split())
    assert versions == {f"{NAME}@{night.model}" for night in made if night.version}
    assert [night.number for night in made] == list(range(1, len(made) + 1))
    if assigned := assignments(project.root):
        assert serving(project.root) == made[assigned[-1].night - 1].version
        assert {night.number for night in made if night.outcome == "promoted"} == {one.night for one in assigned}
    assert not (project.root / "runs/night").exists()


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "prefect" not in " ".join(process.cmdline())
    except psutil.Error:
        return False
