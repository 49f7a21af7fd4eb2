"""Nights that are killed at random moments, over and over, one link of their chain after the other, and whose database goes away: what
serves is always whole and one of two, no version is half-registered, and the next night works.

Takes half an hour. CLICKMILL_KILLS says how many times.
"""

import os
import random
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from examples.nightly_demo import Demo
from flows.nightly.clone import CLONE, set_param
from flows.nightly.record import PRODUCTION, nights
from flows.nightly.registry import NAME, assignments
from tests.conftest import Project
from tests.factories.deployments import ENDED, RUN_S, until
from tests.services.conftest import Postgres
from tests.services.production import Production, production
from training.inference.bundle import load_bundle

pytestmark = pytest.mark.services

NUM_KILLS = int(os.environ.get("CLICKMILL_KILLS", "30"))
ROWS, NIGHT_S = 1500, 30.0
# What is killed: a word of its command line, and whether it works in the night's clone. Of the rest, what happens to it says more.
VICTIMS = {
    "flow": ("prefect", False),
    "dvc": ("flows.adapters.dvc", True),
    "stage": ("clickmill", True),
    "rank": ("training.distributed", True),
}
KINDS = ["worker", *VICTIMS, "database", "machine"]  # the last: the worker and all below it at once


def test_a_night_survives_what_it_is_killed_by(
    tmp_path: Path, repository: Path, environment: dict[str, str], postgres: Postgres
) -> None:
    draw = random.Random(1)
    demo = Demo(tmp_path / "demo", ROWS, repository)
    set_param(demo.root, "train", "devices", 2)
    demo.commit("Two ranks")
    for day in range(3):
        demo.deliver(day)
    with production(demo.root, tmp_path / "prefect.log", environment, postgres) as started:
        started.project.run("prefect", "--no-prompt", "deploy", "--all")
        assert started.finish(started.start("nightly"))["state_type"] == "COMPLETED"
        for number in range(NUM_KILLS):
            demo.deliver(3, demo.days[3][: ROWS - number - 1])  # delivered again each time
            survive(started, postgres, KINDS[number % len(KINDS)], draw.uniform(0, NIGHT_S))


def survive(started: Production, postgres: Postgres, kind: str, after_s: float) -> None:
    root = started.project.root
    before, done = serving(root), len(nights(root))
    seen = set()
    run_id = started.start("nightly")
    began_s = time.monotonic()
    while time.monotonic() < began_s + after_s or not family(root, kind):
        seen.add(serving(root))
        if started.run(run_id)["state_type"] in ENDED:
            break
    told = strike(started, postgres, kind)
    print(
        f"{time.strftime('%H:%M:%S')} {kind} after {time.monotonic() - began_s:.1f} s: {told}",
        flush=True,
    )

    def gone() -> bool:
        seen.add(serving(root))
        return not family(root, "all")

    until(gone, RUN_S, started.log)
    made = nights(root)
    assert seen <= {before, *(one.version for one in made[done:])}
    last = started.finish(started.start("nightly"))
    print(
        last["state"]["name"],
        last["state"]["message"],
        "before:",
        started.run(run_id)["state"]["name"],
        flush=True,
    )
    assert last["state_type"] == "COMPLETED"
    assert len(nights(root)) > done
    check_whole(started.project)


def family(root: Path, kind: str) -> list[psutil.Process]:
    """A night's processes of this kind."""
    places = [Project(root, {}), Project(root / CLONE, {})]
    if kind not in VICTIMS:
        return [process for place in places for process in place.processes()]
    word, in_clone = VICTIMS[kind]
    return places[in_clone].processes(word)


def strike(started: Production, postgres: Postgres, kind: str) -> str:
    if kind == "database":
        postgres.stop()
        time.sleep(1)
        postgres.start()
        return "restarted"
    if kind in ("worker", "machine"):
        worker = psutil.Process(started.worker.pid)
        for process in [worker, *(worker.children(recursive=True) if kind == "machine" else [])]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        started.worker.wait()
        started.start_worker()
        return "started again"
    victims = family(started.project.root, kind)
    if not victims:
        return "night was over"
    told = " ".join(victims[0].cmdline())[-80:]
    victims[0].kill()
    return told


def serving(root: Path) -> str | None:
    """The version of the bundle that artifacts/production is, all of it checked."""
    return load_bundle(root / PRODUCTION).version if (root / PRODUCTION).exists() else None


def check_whole(project: Project) -> None:
    """Each night that has a model has its version, and what serves is what the last assignment says."""
    made = nights(project.root)
    versions = set(project.run("git", "tag", "--list", f"{NAME}@*").split())
    assert versions == {f"{NAME}@{night.model}" for night in made if night.version}
    assert [night.number for night in made] == list(range(1, len(made) + 1))
    if assigned := assignments(project.root):
        assert serving(project.root) == made[assigned[-1].night - 1].version
        assert {night.number for night in made if night.outcome == "promoted"} == {
            one.night for one in assigned
        }
    assert not (project.root / CLONE).exists()
