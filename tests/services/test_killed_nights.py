"""Nightly runs that are killed at random moments, and whose database is restarted.

Each time one part is killed: the worker, the flow, DVC, a stage, a rank, or all of them at once.
The bundle in production is always complete and one of the two legitimate ones, no model is half
registered, and the next nightly run succeeds.

The test takes half an hour. CLICKMILL_KILLS is the number of kills.
"""

import os
import random
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from common.layout import NIGHTLY_CLONE
from examples.nightly_demo import Demo
from flows.nightly.clone import set_param
from flows.nightly.record import PRODUCTION
from flows.nightly.registry import MODEL_PREFIX
from flows.nightly.repository import NightlyRepository
from tests.conftest import Project
from tests.factories.deployments import ENDED, RUN_S, until
from tests.services.conftest import Postgres
from tests.services.production import Production, production
from training.inference.bundle import load_bundle
from training.launch.launcher import WORKER_MODULE

pytestmark = pytest.mark.services

NUM_KILLS = int(os.environ.get("CLICKMILL_KILLS", "30"))
NUM_ROWS = 1500
TYPICAL_RUN_S = 30.0
# Parts that are killed by name: a word of the command line, and whether the process works in the
# nightly run's clone.
VICTIMS = {
    "flow": ("prefect", False),
    "dvc": ("flows.adapters.dvc", True),
    "stage": ("clickmill", True),
    "rank": (WORKER_MODULE, True),
}
# "machine" kills the worker and all processes below it at once.
PARTS = ["worker", *VICTIMS, "database", "machine"]


def test_nightly_runs_survive_kills(
    tmp_path: Path, repository: Path, environment: dict[str, str], postgres: Postgres
) -> None:
    draw = random.Random(1)
    demo = Demo(tmp_path / "demo", NUM_ROWS, repository)
    set_param(demo.root, "train", "devices", 2)
    demo.commit("Two ranks")
    for day in range(3):
        demo.deliver(day)
    with production(demo.root, tmp_path / "prefect.log", environment, postgres) as started:
        started.project.run("prefect", "--no-prompt", "deploy", "--all")
        assert started.finish(started.start("nightly"))["state_type"] == "COMPLETED"
        for number in range(NUM_KILLS):
            demo.deliver(3, demo.days[3][: NUM_ROWS - number - 1])  # another file each time
            part = PARTS[number % len(PARTS)]
            kill_and_check(started, postgres, part, draw.uniform(0, TYPICAL_RUN_S))


def kill_and_check(started: Production, postgres: Postgres, part: str, after_s: float) -> None:
    """Start a nightly run, kill a part of it, and check that the next one succeeds."""
    root = started.project.root
    repository = NightlyRepository(root)
    before, num_runs = version_in_production(root), len(repository.runs())
    seen = set()
    run_id = started.start("nightly")
    start_s = time.monotonic()
    while time.monotonic() < start_s + after_s or not processes_of(root, part):
        seen.add(version_in_production(root))
        if started.run(run_id)["state_type"] in ENDED:
            break
    victim = kill(started, postgres, part)
    elapsed_s = time.monotonic() - start_s
    print(f"{time.strftime('%H:%M:%S')} {part} after {elapsed_s:.1f} s: {victim}", flush=True)

    def is_over() -> bool:
        seen.add(version_in_production(root))
        return not processes_of(root, "all")

    until(is_over, RUN_S, started.log)
    assert seen <= {before, *(run.version for run in repository.runs()[num_runs:])}
    last = started.finish(started.start("nightly"))
    state, killed_state = last["state"], started.run(run_id)["state"]["name"]
    print(state["name"], state["message"], "; before that:", killed_state, flush=True)
    assert last["state_type"] == "COMPLETED"
    assert len(repository.runs()) > num_runs
    check_repository(started.project)


def processes_of(root: Path, part: str) -> list[psutil.Process]:
    """Return the nightly run's processes of a part; for a part that has no name, all of them."""
    checkout, clone = Project(root, {}), Project(root / NIGHTLY_CLONE, {})
    if part not in VICTIMS:
        return [*checkout.processes(), *clone.processes()]
    word, in_clone = VICTIMS[part]
    return (clone if in_clone else checkout).processes(word)


def kill(started: Production, postgres: Postgres, part: str) -> str:
    """Kill a part, start again what a service manager would start, and return what was done."""
    if part == "database":
        postgres.stop()
        time.sleep(1)
        postgres.start()
        return "restarted"
    if part in ("worker", "machine"):
        worker = psutil.Process(started.worker.pid)
        victims = [worker]
        if part == "machine":
            victims += worker.children(recursive=True)
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        started.worker.wait()
        started.start_worker()
        return "started again"
    processes = processes_of(started.project.root, part)
    try:
        command = " ".join(processes[0].cmdline())[-80:]
        processes[0].kill()
    except (IndexError, psutil.NoSuchProcess):  # there is none, or it has just ended
        return "the run was over"
    return command


def version_in_production(root: Path) -> str | None:
    """Return the version of the bundle in production, all of whose files are checked."""
    return load_bundle(root / PRODUCTION).version if (root / PRODUCTION).exists() else None


def check_repository(project: Project) -> None:
    """Check that every model is registered, and that production is what the registry names."""
    repository = NightlyRepository(project.root)
    runs, assignments = repository.runs(), repository.assignments()
    registered = set(project.run("git", "tag", "--list", f"{MODEL_PREFIX}*").split())
    assert registered == {f"{MODEL_PREFIX}{run.model}" for run in runs if run.version}
    assert [run.number for run in runs] == list(range(1, len(runs) + 1))
    if assignments:
        assert version_in_production(project.root) == runs[assignments[-1].run - 1].version
        promoted = {run.number for run in runs if run.outcome == "promoted"}
        assert promoted == {assignment.run for assignment in assignments}
    assert not (project.root / NIGHTLY_CLONE).exists()
