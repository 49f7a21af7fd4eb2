"""Ten nights as they would come in production: Prefect on PostgreSQL behind a password, a worker, DVC's remote an S3-compatible store that
knows its users, and the server's scheduler as the clock. What happens by day is the demo's script.
"""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from flows.nights.demo import Demo
from flows.nights.record import PRODUCTION, Night, nights
from flows.nights.registry import assignments
from flows.nights.save import UNPUSHED
from tests.conftest import Project, free_port
from tests.deployed import START_S, Api, start_service, stop, until
from tests.services.conftest import SECRET, Postgres
from tests.support import ROOT
from training.bundle import load_bundle

pytestmark = pytest.mark.services

ROWS = 4000
EVERY_S = 20  # at most so long after a night the next begins; while one runs the others are cancelled
NIGHT_S = 240.0
PASSWORD = "prefect:by-night"
OUTCOMES = [  # of the nights that Demo.happens tells of
    {"promoted", "kept"},
    {"promoted", "kept"},
    {"nothing new"},
    {"kept"},
    {"promoted", "kept"},
    {"kept"},
    {"kept"},
    {"promoted", "kept"},
    {"promoted", "kept"},
    {"promoted", "kept"},
]


@pytest.fixture
def demo(
    repository: Path, tmp_path: Path, environment: dict[str, str], postgres: Postgres, store: dict[str, str]
) -> Iterator[tuple[Demo, Project, Api]]:
    """The demo's repository with a remote and a schedule by seconds, and everything that runs it."""
    demo = Demo(tmp_path / "demo", ROWS, repository)
    port = str(free_port())
    server = {"PREFECT_SERVER_API_PORT": port, "PREFECT_SERVER_API_AUTH_STRING": PASSWORD, **postgres.settings}
    client = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_API_AUTH_STRING": PASSWORD, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    project = Project(demo.root, environment | store | client)
    schedule = (demo.root / "prefect.yaml").read_text()
    (demo.root / "prefect.yaml").write_text(re.sub(r'- cron: "0 3 \* \* \*"\n\s+timezone: UTC', f"- interval: {EVERY_S}", schedule))
    project.run("python", str(ROOT / "docker" / "make_bucket.py"), "nights")
    project.run("dvc", "remote", "add", "--default", "s3", "s3://nights/dvc")
    project.run("git", "commit", "-qam", "A remote, and a shorter day")
    log, services = tmp_path / "prefect.log", []
    try:
        services.append(start_service(Project(demo.root, project.environment | server), log, "prefect", "server", "start"))
        api = Api(f"http://127.0.0.1:{port}/api")
        until(api.ready, START_S, log)
        services.append(start_service(project, log, "prefect", "worker", "start", "--pool", "clickmill"))
        yield demo, project, api
    finally:
        stop(services)


def night_after(project: Project, moment: datetime) -> Night:
    """The first that begins after this moment, once it has come to an end."""
    deadline_s = time.monotonic() + NIGHT_S
    while not (found := [night for night in nights(project.root) if night.when > moment]):
        assert time.monotonic() < deadline_s, (project.root.parent.parent / "prefect.log").read_text()[-4000:]
        time.sleep(1)
    return found[0]


def test_ten_nights(demo: tuple[Demo, Project, Api], tmp_path: Path) -> None:
    days, project, api = demo
    seen = []
    for number, (told, expected) in enumerate(zip(days.happens(), OUTCOMES, strict=True)):
        moment = datetime.now(UTC) + timedelta(seconds=1)
        if not number:
            project.run("prefect", "--no-prompt", "deploy", "--all")
        night = night_after(project, moment)
        seen.append(f"{told}: {night.headline}")
        assert night.outcome in expected, (seen, night.reasons)
        if assigned := assignments(project.root):
            assert load_bundle(project.root / PRODUCTION).version == nights(project.root)[assigned[-1].night - 1].version
    assert any("rollback from" in one.why for one in assignments(project.root)), seen

    until(lambda: not project.run("git", "for-each-ref", UNPUSHED), 60, tmp_path / "prefect.log")  # all at the store
    assert api.client.get("/flows/count").status_code == httpx.codes.UNAUTHORIZED
    page = (project.root / "artifacts/nights.html").read_text()
    log = (tmp_path / "prefect.log").read_text()
    told = "".join(
        project.run("git", "show", f"{night.tag}:{name}") for night in nights(project.root) for name in ("night.json", "dvc.lock")
    )
    for secret in (SECRET, PASSWORD.partition(":")[2]):
        assert secret not in page + log + told
