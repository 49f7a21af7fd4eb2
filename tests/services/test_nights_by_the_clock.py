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
from flows.nightly.record_commit import UNPUSHED

from examples.nightly_demo import Demo
from flows.nightly.record import PRODUCTION, Night, nights
from flows.nightly.registry import assignments
from tests.conftest import Project
from tests.factories.deployments import until
from tests.factories.support import ROOT
from tests.services.conftest import SECRET, Postgres
from tests.services.production import PASSWORD, Production, production
from training.inference.bundle import load_bundle

pytestmark = pytest.mark.services

ROWS = 4000
EVERY_S = 20  # at most so long after a night the next begins; while one runs the others are skipped
NIGHT_S = 240.0
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
    repository: Path,
    tmp_path: Path,
    environment: dict[str, str],
    postgres: Postgres,
    store: dict[str, str],
) -> Iterator[tuple[Demo, Production]]:
    """The demo's repository with a remote and a schedule by seconds, and everything that runs it."""
    demo = Demo(tmp_path / "demo", ROWS, repository)
    by_hand = Project(demo.root, environment | store)
    schedule = (demo.root / "prefect.yaml").read_text()
    (demo.root / "prefect.yaml").write_text(
        re.sub(r'- cron: "0 3 \* \* \*"\n\s+timezone: UTC', f"- interval: {EVERY_S}", schedule)
    )
    by_hand.run("python", str(ROOT / "docker" / "make_bucket.py"), "nights")
    by_hand.run("dvc", "remote", "add", "--default", "s3", "s3://nights/dvc")
    demo.commit("A remote, and a shorter day")
    with production(demo.root, tmp_path / "prefect.log", by_hand.environment, postgres) as started:
        yield demo, started


def night_after(started: Production, moment: datetime) -> Night:
    """The first that begins after this moment, once it has come to an end."""
    deadline_s = time.monotonic() + NIGHT_S
    while not (found := [night for night in nights(started.project.root) if night.when > moment]):
        assert time.monotonic() < deadline_s, started.log.read_text()[-4000:]
        time.sleep(1)
    return found[0]


def test_ten_nights(demo: tuple[Demo, Production]) -> None:
    days, started = demo
    project, seen = started.project, []
    for number, (told, expected) in enumerate(zip(days.happens(), OUTCOMES, strict=True)):
        moment = datetime.now(UTC) + timedelta(seconds=1)
        if not number:
            project.run("prefect", "--no-prompt", "deploy", "--all")
        night = night_after(started, moment)
        seen.append(f"{told}: {night.headline}")
        assert night.outcome in expected, (seen, night.reasons)
        if assigned := assignments(project.root):
            assert (
                load_bundle(project.root / PRODUCTION).version
                == nights(project.root)[assigned[-1].night - 1].version
            )
    assert any("rollback from" in one.why for one in assignments(project.root)), seen

    until(
        lambda: not project.run("git", "for-each-ref", UNPUSHED), 60, started.log
    )  # all at the store
    assert (
        httpx.get(f"{started.api.client.base_url}/flows/count").status_code
        == httpx.codes.UNAUTHORIZED
    )
    page = (project.root / "artifacts/nights.html").read_text()
    log = started.log.read_text()
    told = "".join(
        project.run("git", "show", f"{night.tag}:{name}")
        for night in nights(project.root)
        for name in ("night.json", "dvc.lock")
    )
    for secret in (SECRET, PASSWORD.partition(":")[2]):
        assert secret not in page + log + told
