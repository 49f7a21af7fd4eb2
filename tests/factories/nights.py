"""Nights that are recorded, tagged and put into production as flows/nightly/flow.py does it, with models that are none."""

from datetime import UTC, datetime
from pathlib import Path

from dvc.repo import Repo

from common.files import sha256_file
from flows.nightly.clone import make_clone
from flows.nightly.git import git
from flows.nightly.record import Night, Outcome
from flows.nightly.record_commit import save
from flows.nightly.registry import MODELS, settle
from tests.factories.support import ROOT

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)


def make_repository(root: Path) -> Path:
    """One without a night, at root, which must not exist; root."""
    root.mkdir()
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    git(root, "init", "-q")
    for key, value in (("name", "test"), ("email", "test@localhost")):
        git(root, "config", f"user.{key}", value)
    Repo.init(str(root)).close()
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "all")
    return root


def pass_night(
    root: Path, number: int, outcome: Outcome, started: datetime, reasons: list[str] | None = None
) -> str:
    """One more night, to its end; its model's version."""
    scratch = root / MODELS / "scratch"
    scratch.mkdir(parents=True)
    (scratch / "bundle.json").write_text(f'{{"night": {number}}}')
    version = sha256_file(scratch / "bundle.json")[:12]
    scratch.rename(root / MODELS / version)
    known = {
        "base": None,
        "champion": None,
        "decision": None,
        "warnings": [],
        "seconds": 60.0,
        "tasks": {},
        "arrivals": {},
    }
    known |= {"log": {}, "data": None}
    night = Night(
        number,
        f"day_{number}",
        outcome,
        reasons or [],
        version=version,
        started=started.isoformat(),
        **known,
    )  # type: ignore[arg-type]
    clone = make_clone(root, "HEAD", None, {"number": number})
    save(root, clone, night)
    settle(root)
    return version
