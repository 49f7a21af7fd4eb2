"""Checks that nightly runs take place, and that the right model is in production and served.

It reads the records in git, the link artifacts/production, and what servers report. It needs no
Prefect server, so it also reports a problem when Prefect itself is down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.nightly.bundles import check_bundle
from flows.nightly.record import PRODUCTION, NightlyRun
from flows.nightly.registry import Assignment
from flows.nightly.repository import NightlyRepository
from flows.nightly.served_models import Server, served_fact

TIME_FORMAT = "%Y-%m-%d %H:%M UTC"
CLOCK_TOLERANCE = timedelta(minutes=10)  # by which a machine's clock may have been set back


@dataclass(frozen=True)
class Health:
    """The state of the nightly runs.

    Attributes:
        summary: The last run and the model in production, in one line.
        problems: What is wrong, one line each.
    """

    summary: str
    problems: list[str]


def health(
    root: Path,
    max_age: timedelta,
    now: datetime | None = None,
    servers: Sequence[Server] = (),
) -> Health:
    """Check that the last nightly run is recent, and that the right bundle is in production.

    The bundle in production is read as a whole, and mended if it is damaged (bundles.py).

    Args:
        root: The repository.
        max_age: The last run must have begun at most this long before now.
        now: The present time; None means the clock's.
        servers: Servers that must serve the model in production.
    """
    now = now or datetime.now(UTC)
    repository = NightlyRepository(root)
    (runs, damaged), assignments = repository.read_records(), repository.assignments()
    problems = list(damaged.values())
    if not runs:
        problems.append(
            f"no nightly run has finished in {root.resolve()}; `clickmill nightly run` starts one"
        )
        return Health("no nightly run yet", problems)
    last = runs[-1]
    age = now - last.started
    facts = [
        f"{last.headline}; began {last.started.strftime(TIME_FORMAT)}, {_ago(age)}",
        _describe_production(runs, assignments),
    ]
    if unpushed := repository.unpushed():
        facts.append(f"not at DVC's remote yet: nightly run {', '.join(map(str, unpushed))}")
    if age > max_age:
        problems.append(
            f"the last finished nightly run ({last.tag}) began {_hours(age)} ago, "
            f"and one is due every {_hours(max_age)}; look at the runs of the flow nightly in "
            "Prefect, and check that its server and worker are up"
        )
    if age < -CLOCK_TOLERANCE:
        problems.append(
            f"the last finished nightly run ({last.tag}) began {_hours(-age)} in the future; "
            "the clock of this machine was or is wrong, and until then no missing run is noticed"
        )
    if production_problem := find_production_problem(repository, runs, assignments):
        problems.append(production_problem)
    expected = repository.production_version()
    for server in servers if expected else ():
        fact, problem = served_fact(server, str(expected))
        facts += [fact] if fact else []
        problems += [problem] if problem else []
    return Health("; ".join(facts), problems)


def find_production_problem(
    repository: NightlyRepository, runs: Sequence[NightlyRun], assignments: Sequence[Assignment]
) -> str | None:
    """Return why artifacts/production is not the complete bundle that the registry names.

    A damaged bundle is mended if DVC has it. None means that the bundle in production is complete.
    """
    if not assignments:
        return f"{PRODUCTION}: no model is in production; no nightly run has promoted one"
    run = _run_of(runs, assignments[-1])
    if run is None or run.version is None:
        return f"{PRODUCTION}: the record of the model in production cannot be read"
    if problem := check_bundle(repository.root, run):
        return problem
    if problem := repository.link_problem(run.version):
        return f"{problem}; the next nightly run or `clickmill nightly rollback` repairs it"
    return None


def _describe_production(runs: Sequence[NightlyRun], assignments: Sequence[Assignment]) -> str:
    if not assignments:
        return "no model in production"
    run, since = _run_of(runs, assignments[-1]), assignments[-1].at.astimezone(UTC)
    name = f"{run.model} ({run.version})" if run else f"v{assignments[-1].run}.0.0"
    return f"in production {name} since {since.strftime(TIME_FORMAT)}"


def _run_of(runs: Sequence[NightlyRun], assignment: Assignment) -> NightlyRun | None:
    return next((run for run in runs if run.number == assignment.run), None)


def _ago(age: timedelta) -> str:
    return f"{_hours(age)} ago" if age >= timedelta() else f"{_hours(-age)} in the future"


def _hours(duration: timedelta) -> str:
    return f"{round(duration / timedelta(hours=1), 1):g} h"
