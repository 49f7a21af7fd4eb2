"""Checks that nightly runs take place, from their records in git and the link artifacts/production.

It needs no Prefect server, so it also reports a problem when Prefect itself is down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from common.bundle_layout import MANIFEST, version_of
from flows.nightly.record import PRODUCTION, NightlyRun
from flows.nightly.registry import Assignment
from flows.nightly.repository import NightlyRepository

TIME_FORMAT = "%Y-%m-%d %H:%M UTC"


@dataclass(frozen=True)
class Health:
    """The state of the nightly runs.

    Attributes:
        summary: The last run and the model in production, in one line.
        problems: What is wrong, one line each.
    """

    summary: str
    problems: list[str]


def health(root: Path, max_age: timedelta, now: datetime | None = None) -> Health:
    """Check that the last nightly run is recent, and that the right bundle is in production.

    Args:
        root: The repository.
        max_age: The last run must have begun at most this long before now.
        now: The present time; None means the clock's.
    """
    now = now or datetime.now(UTC)
    repository = NightlyRepository(root)
    runs, assignments = repository.runs(), repository.assignments()
    if not runs:
        problem = (
            f"no nightly run has finished in {root.resolve()}; `clickmill nightly run` starts one"
        )
        return Health("no nightly run yet", [problem])
    last = runs[-1]
    age = now - last.started
    facts = [
        f"{last.headline}; began {last.started.strftime(TIME_FORMAT)}, {_hours(age)} ago",
        _describe_production(runs, assignments),
    ]
    if unpushed := repository.unpushed():
        facts.append(f"not at DVC's remote yet: nightly run {', '.join(map(str, unpushed))}")
    problems = []
    if age > max_age:
        problems.append(
            f"the last finished nightly run ({last.tag}) began {_hours(age)} ago, "
            f"and one is due every {_hours(max_age)}; look at the runs of the flow nightly in "
            "Prefect, and check that its server and worker are up"
        )
    if production_problem := find_production_problem(root, runs, assignments):
        problems.append(production_problem)
    return Health("; ".join(facts), problems)


def find_production_problem(
    root: Path, runs: Sequence[NightlyRun], assignments: Sequence[Assignment]
) -> str | None:
    """Return why artifacts/production is not the bundle that the registry names, None if it is."""
    if not assignments:
        return f"{PRODUCTION}: no model is in production; no nightly run has promoted one"
    expected, manifest = _run_of(runs, assignments[-1]).version, PRODUCTION / MANIFEST
    actual = None
    if (root / manifest).is_file():
        actual = version_of(root / PRODUCTION)
    if actual == expected:
        return None
    present = f"version {actual}" if actual else "nothing"
    return (
        f"{manifest}: {present} found, version {expected} expected by the registry; "
        "the next nightly run repairs it from DVC's cache or remote"
    )


def _describe_production(runs: Sequence[NightlyRun], assignments: Sequence[Assignment]) -> str:
    if not assignments:
        return "no model in production"
    run, since = _run_of(runs, assignments[-1]), assignments[-1].at.astimezone(UTC)
    return f"in production {run.model} ({run.version}) since {since.strftime(TIME_FORMAT)}"


def _run_of(runs: Sequence[NightlyRun], assignment: Assignment) -> NightlyRun:
    return next(run for run in runs if run.number == assignment.run)


def _hours(duration: timedelta) -> str:
    return f"{round(duration / timedelta(hours=1), 1):g} h"
