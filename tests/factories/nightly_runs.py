"""Finished nightly runs without training, recorded and promoted as in flows/nightly/flow.py."""

import os
import shutil
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dvc.repo import Repo

from common.bundle_layout import MANIFEST, MODEL, version_of
from common.checked_json import write_checked_json
from common.files import read_json
from common.layout import SERVING
from flows.git_commands import Git
from flows.nightly.bundles import MODELS
from flows.nightly.record import NightlyRun, Outcome
from flows.nightly.repository import NightlyRepository
from serving.serving_bundle import SERVING_MANIFEST
from tests.factories.models import log_lines, make_bundle, make_project
from tests.factories.serving_bundles import served_project
from tests.factories.support import ROOT, make_params
from training.export.stage import export_stage

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
DVC_YAML = f"""
stages:
  train: {{cmd: clickmill stage train, outs: [{MODEL}]}}
  export: {{cmd: clickmill stage export, outs: [{SERVING}]}}
"""


def make_repository(root: Path, *, with_stage: bool = False) -> NightlyRepository:
    """Create a git and DVC repository without a nightly run.

    Args:
        root: Its directory, which must not exist.
        with_stage: Also create dvc.yaml with the stages that make bundles, so that DVC can have them.
    """
    root.mkdir()
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    if with_stage:
        (root / "dvc.yaml").write_text(DVC_YAML)
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


def make_decision(version: str, **changes: Any) -> dict[str, Any]:
    """Create the contents of decision.json of a model that passed one check without a champion."""
    intervals = {f"{name}_{end}": 0.5 for name in ("auc", "logloss") for end in ("low", "high")}
    metrics = {"version": version, "num_rows": 300, "auc": 0.7, "logloss": 0.5}
    decision: dict[str, Any] = {
        "promote": True,
        "reasons": [],
        "checks": [{"name": "skill", "passed": True, "message": "normalised entropy 0.9"}],
        "challenger": metrics | {"normalized_entropy": 0.9} | intervals,
        "champion": None,
        "difference": {},
    }
    return decision | changes


def finish_run(
    repository: NightlyRepository,
    number: int,
    outcome: Outcome,
    started: datetime,
    reasons: list[str] | None = None,
    *,
    in_dvc: bool = False,
    exported: bool = True,
    **changes: Any,
) -> str:
    """Add a finished run with a bundle of its own, and return its model version.

    Args:
        repository: Where the run is recorded.
        number: The number of the run.
        outcome: What became of its model.
        started: When it began.
        reasons: Why its model was rejected.
        in_dvc: Also store the bundle and its serving bundle in DVC's cache and in the record's
            dvc.lock, as the stages train and export do, which the repository must have.
        exported: Whether the run made a serving bundle; without one DVC has the reason.
        changes: Other values of the record.
    """
    models = repository.root / MODELS
    scratch = models / "scratch"
    write_bundle(scratch, number)
    version = version_of(scratch)
    clone = repository.make_clone("HEAD", None, {"number": number})
    if in_dvc:
        shutil.copytree(scratch, clone.root / MODEL)
        if exported:
            write_serving_bundle(clone.root / SERVING, version)
        else:
            export_stage(make_params(export__runtime=None).export, clone.root)
        with Repo(str(clone.root)) as repo:
            repo.commit(force=True)
    scratch.rename(models / version)
    values = {"version": version, "started": started, "reasons": reasons or []}
    changes = values | {"decision": make_decision(version)} | changes
    repository.record(clone, make_run(number, outcome, **changes))
    repository.apply_records()
    return version


def record(repository: NightlyRepository, run: NightlyRun) -> None:
    """Record a run in a clone, and apply the records."""
    clone = repository.make_clone("HEAD", None, {"number": run.number})
    repository.record(clone, run)
    repository.apply_records()


def write_bundle(directory: Path, number: int) -> None:
    """Write a bundle that can be loaded; each number gives another version."""
    shutil.copytree(_one_bundle(), directory)
    manifest = read_json(directory / MANIFEST)
    manifest["data"]["raw/number"] = f"{number:064x}"
    write_checked_json(directory / MANIFEST, manifest)


def write_serving_bundle(directory: Path, version: str) -> None:
    """Write a complete serving bundle that says that it is that of a model version."""
    shutil.copytree(served_project().serving, directory)
    manifest = read_json(directory / SERVING_MANIFEST)
    write_checked_json(directory / SERVING_MANIFEST, manifest | {"model_version": version})


def flip(path: Path, place: int | None = None) -> None:
    """Change one bit of a file, in the middle or at a place; its time and mode stay."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(status.st_mode & 0o777)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


SCRATCH = TemporaryDirectory(prefix="clickmill-bundle-")  # removed at the end of the process


@cache
def _one_bundle() -> Path:
    root = Path(SCRATCH.name)
    make_bundle(root, make_project(root, log_lines(1400, 1)))
    return root / MODEL
