"""The history page: all nightly runs on one HTML page that needs no other file."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from common.files import replaced
from common.html.page import NONE, page_environment
from flows.nightly.history_plots import Plots
from flows.nightly.record import NightlyRun
from flows.nightly.registry import Assignment
from flows.nightly.repository import NightlyRepository
from flows.nightly.served_traffic import describe_served

HISTORY = Path("artifacts/nights.html")
TEMPLATES = Path(__file__).parent / "templates"
NUM_ROWS_SHOWN = 50  # of the table; older rows are folded
NUM_NAMES_SHOWN = 3  # of log files; the others are folded


@dataclass(frozen=True)
class Event:
    """One row of the table: a nightly run or a rollback.

    Attributes:
        position: The number of the run; a rollback lies between the numbers of two runs.
        run: The nightly run, None for a rollback.
        rollback: The rollback, None for a nightly run.
    """

    position: float
    run: NightlyRun | None = None
    rollback: Assignment | None = None


def write_history(repository: NightlyRepository) -> Path:
    """Write the page from the repository's tags alone, and return its path.

    The caller holds the registry's lock (flows/locks.py).
    """
    path = repository.root / HISTORY
    records = repository.read_records()
    with replaced(path) as scratch:
        page = render_history(
            records.runs, repository.assignments(), list(records.damaged.values())
        )
        scratch.write_text(page, encoding="utf-8")
    return path.absolute()


def render_history(
    runs: Sequence[NightlyRun], assignments: Sequence[Assignment], damaged: Sequence[str] = ()
) -> str:
    """Return the page as HTML. The same records give the same bytes.

    Args:
        runs: All runs in their order whose records can be read, at least one.
        assignments: What was put into production, in its order.
        damaged: Why the other records cannot be read, a line each.
    """
    environment = page_environment(TEMPLATES)
    environment.filters.update(
        utc=format_utc,
        duration=format_duration,
        signed=format_signed,
        unusual=unusual_changes,
        served=describe_served,
    )
    events = list_events(runs, assignments)
    plots = Plots(runs, [event.position for event in events if event.rollback])
    current = assignments[-1] if assignments else None
    champion = None
    if current:
        champion = next((run for run in runs if run.number == current.run), None)
    return environment.get_template("history.html.j2").render(
        runs=runs,
        last=runs[-1],
        outcomes=Counter(run.outcome for run in runs),
        current=current,
        champion=champion,
        num_rollbacks=len(plots.rollbacks),
        damaged=damaged,
        events=events[::-1],
        num_rows_shown=NUM_ROWS_SHOWN,
        num_names_shown=NUM_NAMES_SHOWN,
        figures={
            name: Markup(svg)  # noqa: S704 - our own SVG, whose texts matplotlib has escaped
            for name, svg in draw_figures(plots).items()
        },
    )


def draw_figures(plots: Plots) -> dict[str, str]:
    """Return the SVG of each figure for which there is data, by name."""
    decisions = [run.decision for run in plots.runs if run.decision]
    figures = {"durations": plots.durations()}
    if decisions:
        figures["metrics"] = plots.metrics()
    if any(decision["difference"] for decision in decisions):
        figures["differences"] = plots.differences()
    if any(run.newest_day for run in plots.runs):
        figures["days"] = plots.days()
    if any(run.served_figures and run.served_figures.main for run in plots.runs):
        figures["served"] = plots.served()
    return figures


def list_events(runs: Sequence[NightlyRun], assignments: Sequence[Assignment]) -> list[Event]:
    """Return runs and rollbacks in the order of time.

    The first assignment of a promoted run's model is its promotion; every other is a rollback. The
    clock may have been set back, so a rollback is placed by its time only between the promotions
    before and after it, whose order is that of their numbers.
    """
    promoted = {run.number for run in runs if run.outcome == "promoted"}
    first: dict[int, Assignment] = {}
    for assignment in assignments:
        first.setdefault(assignment.run, assignment)
    promotions = [assignment for run, assignment in first.items() if run in promoted]
    events = [Event(run.number, run) for run in runs]
    last = 0.0
    for assignment in assignments:
        if assignment in promotions:
            last = max(last, assignment.run)
            continue
        later = [one.run for one in promotions if one.number > assignment.number]
        earlier = [run.number for run in runs if run.started <= assignment.at]
        last = max(last, min(max(earlier, default=0), min(later, default=math.inf) - 1))
        events.append(Event(last + 0.5, rollback=assignment))
    return sorted(events, key=lambda event: event.position)


def unusual_changes(run: NightlyRun) -> dict[str, list[str]]:
    """Return the log changes of a run other than new files: file names by kind of change."""
    return {kind: names for kind, names in run.log_changes.items() if kind != "new"}


def format_utc(at: datetime, form: str = "%Y-%m-%d %H:%M") -> str:
    """Format a time in UTC."""
    return at.astimezone(UTC).strftime(form)


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes, or hours and minutes."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"


def format_signed(number: float | None, digits: int = 4) -> str:
    """Format a number with its sign, the minus as a typographic one."""
    return NONE if number is None else f"{number:+.{digits}f}".replace("-", "−")
