"""Finished nightly runs without training, recorded and promoted as in flows/nightly/flow.py."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from common.files import sha256_file
from flows.git_commands import Git
from flows.nightly.record import NightlyRun, Outcome
from flows.nightly.repository import MODELS, NightlyRepository
from tests.factories.support import ROOT

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)


def make_repository(root: Path) -> NightlyRepository:
    """Create a git and DVC repository without a nightly run. root must not exist."""
    root.mkdir()
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    git = Git(root)
    git.run("init", "-q")
    for key, value in (("name", "test"), ("email", "test@localhost")):
        git.run("config", f"user.{key}", value)
    Repo.init(str(root)).close()
    git.run("add", "-A")
    git.commit("all")
    return NightlyRepository(root)


def make_run(number: int, outcome: Outcome, **changes: Any) -> NightlyRun:
    """Create a record, in which `changes` replace the default values."""
    values: dict[str, Any] = {
        "until": f"day_{number}",
        "reasons": [],
        "log_files": {},
        "log_changes": {},
        "base": None,
        "version": f"{number:012x}",
        "champion": None,
        "decision": None,
        "warnings": [],
        "started": NOW,
        "seconds": 60.0,
        "stage_seconds": {},
        "newest_day": None,
    }
    return NightlyRun(number=number, outcome=outcome, **(values | changes))


def finish_run(
    repository: NightlyRepository,
    number: int,
    outcome: Outcome,
    started: datetime,
    reasons: list[str] | None = None,
    **changes: Any,
) -> str:
    """Add a finished run with a stand-in for a bundle, and return its model version."""
    models = repository.root / MODELS
    scratch = models / "scratch"
    scratch.mkdir(parents=True)
    (scratch / "bundle.json").write_text(f'{{"run": {number}}}')
    version = sha256_file(scratch / "bundle.json")[:12]
    scratch.rename(models / version)
    changes = {"version": version, "started": started, "reasons": reasons or []} | changes
    record(repository, make_run(number, outcome, **changes))
    return version


def record(repository: NightlyRepository, run: NightlyRun) -> None:
    """Record a run in a clone, and apply the records."""
    clone = repository.make_clone("HEAD", None, {"number": run.number})
    repository.record(clone, run)
    repository.apply_records()
