"""Ten scheduled nightly runs, as in production.

Prefect runs on PostgreSQL and asks for a password, a worker executes the runs, DVC's remote is an
S3-compatible store with users, and the server's scheduler starts the runs. The events of the days
are those of examples/nightly_demo.py.
"""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from examples.nightly_demo import Demo
from flows.nightly.history import HISTORY
from flows.nightly.record import PRODUCTION, RECORD, NightlyRun, Outcome
from flows.nightly.repository import UNPUSHED, NightlyRepository
from tests.conftest import Project
from tests.factories.deployments import until
from tests.factories.support import ROOT
from tests.services.conftest import SECRET, Postgres
from tests.services.production import PASSWORD, Production, production
from training.inference.bundle import load_bundle

pytestmark = pytest.mark.services

NUM_ROWS = 4000
INTERVAL_S = 20  # of the schedule; a run that starts while another is active is skipped
RUN_WITHIN_S = 900.0  # four times what a run needs on a machine that does other work too
COMPARED: set[Outcome] = {"promoted", "rejected"}
REJECTED: set[Outcome] = {"rejected"}
OUTCOMES: list[set[Outcome]] = [  # of the runs after Demo.events
    COMPARED,
    COMPARED,
    {"nothing new"},
    REJECTED,
    COMPARED,
    REJECTED,
    REJECTED,
    COMPARED,
    COMPARED,
    COMPARED,
]


@pytest.fixture
def demo(
    repository: Path,
    tmp_path: Path,
    environment: dict[str, str],
    postgres: Postgres,
    store: dict[str, str],
) -> Iterator[tuple[Demo, Production]]:
    """The demo's repository with a remote and a short schedule, and the services that run it."""
    demo = Demo(tmp_path / "demo", NUM_ROWS, repository)
    project = Project(demo.root, environment | store)
    deployments = demo.root / "prefect.yaml"
    daily = re.compile(r'- cron: "0 3 \* \* \*"\n\s+timezone: UTC')
    deployments.write_text(daily.sub(f"- interval: {INTERVAL_S}", deployments.read_text()))
    project.run("python", str(ROOT / "docker" / "make_bucket.py"), "nights")
    project.run("dvc", "remote", "add", "--default", "s3", "s3://nights/dvc")
    demo.commit("A remote, and a schedule in seconds")
    with production(demo.root, tmp_path / "prefect.log", project.environment, postgres) as started:
        yield demo, started


def wait_for_run_after(moment: datetime, started: Production) -> NightlyRun:
    """Wait until the first nightly run that began after a moment has finished, and return it."""
    repository = NightlyRepository(started.project.root)
    deadline_s = time.monotonic() + RUN_WITHIN_S
    while True:
        for run in repository.runs():
            if run.started > moment:
                return run
        assert time.monotonic() < deadline_s, started.log.read_text()[-4000:]
        time.sleep(1)


def test_ten_nightly_runs(demo: tuple[Demo, Production]) -> None:
    days, started = demo
    project, repository = started.project, NightlyRepository(started.project.root)
    seen: list[str] = []
    for event, expected in zip(days.events(), OUTCOMES, strict=True):
        moment = datetime.now(UTC) + timedelta(seconds=1)
        if not seen:
            project.run("prefect", "--no-prompt", "deploy", "--all")
        run = wait_for_run_after(moment, started)
        seen.append(f"{event}: {run.headline}")
        assert run.outcome in expected, (seen, run.reasons)
        if assignments := repository.assignments():
            promoted = repository.runs()[assignments[-1].run - 1]
            assert load_bundle(project.root / PRODUCTION).version == promoted.version
    reasons = [assignment.reason for assignment in repository.assignments()]
    assert any("rollback from" in reason for reason in reasons), seen

    def is_pushed() -> bool:
        return not project.run("git", "for-each-ref", UNPUSHED)

    until(is_pushed, 60, started.log)
    answer = httpx.get(f"{started.api.client.base_url}/flows/count")
    assert answer.status_code == httpx.codes.UNAUTHORIZED
    texts = [(project.root / HISTORY).read_text(), started.log.read_text()]
    for run in repository.runs():
        texts += [
            project.run("git", "show", f"{run.tag}:{name}") for name in (str(RECORD), "dvc.lock")
        ]
    for secret in (SECRET, PASSWORD.partition(":")[2]):
        assert not any(secret in text for text in texts)
