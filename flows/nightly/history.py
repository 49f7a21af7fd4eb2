"""All nights on one self-contained HTML page: which model serves, what each night came to, how models and days change over time."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from common.files import replaced
from common.html.page import NONE, page_environment
from flows.nightly.history_plots import Plots
from flows.nightly.record import Night, nights
from flows.nightly.registry import Assignment, assignments

HISTORY = Path("artifacts/nights.html")
TEMPLATES = Path(__file__).parent / "templates"
NIGHTS_SHOWN = 50  # in the table; older ones are folded
NAMES_SHOWN = 3  # of log files; the rest is folded


@dataclass(frozen=True)
class Event:
    """A line of the table. place: a night's number, or between two nights for a rollback."""

    place: float
    night: Night | None = None
    rollback: Assignment | None = None


def write_history(root: Path) -> Path:
    """Write the page anew from the repository's tags alone, with the registry's lock (flows/locks.py) held; where it is."""
    path = root / HISTORY
    with replaced(path) as scratch:
        scratch.write_text(history(nights(root), assignments(root)), encoding="utf-8")
    return path.absolute()


def history(done: list[Night], assigned: list[Assignment]) -> str:
    """The page of nights and what was put into production, both in their order. Same records, same bytes."""
    environment = page_environment(TEMPLATES)
    environment.filters.update(utc=utc, duration=duration, signed=signed, oddities=oddities)
    past, serving = events(done, assigned), assigned[-1] if assigned else None
    plots = Plots(done, [event.place for event in past if event.rollback])
    return environment.get_template("history.html.j2").render(
        nights=done,
        last=done[-1],
        outcomes=Counter(night.outcome for night in done),
        serving=serving,
        model=next((night for night in done if serving and night.number == serving.night), None),
        num_rollbacks=len(plots.rollbacks),
        events=past[::-1],
        nights_shown=NIGHTS_SHOWN,
        names_shown=NAMES_SHOWN,
        figures={name: Markup(svg) for name, svg in figures(plots).items()},  # noqa: S704 - our own SVG; matplotlib escapes its texts
    )


def figures(plots: Plots) -> dict[str, str]:
    """Name -> SVG, where there is something to draw."""
    made = {"durations": plots.durations()}
    if any(night.decision for night in plots.nights):
        made["quality"] = plots.quality()
    if any(night.decision and night.decision["difference"] for night in plots.nights):
        made["differences"] = plots.differences()
    if any(night.data for night in plots.nights):
        made["data"] = plots.data()
    return made


def events(done: list[Night], assigned: list[Assignment]) -> list[Event]:
    """Nights and rollbacks in the order of time. A rollback is what put a model into production that its own night had not, or not then."""
    promoted = {night.number for night in done if night.outcome == "promoted"}
    rollbacks = []
    for one in assigned:
        if one.night in promoted:
            promoted.remove(one.night)
        else:
            before = max((night.number for night in done if night.when <= one.at), default=0)
            rollbacks.append(Event(before + 0.5, rollback=one))
    return sorted(
        [*(Event(night.number, night) for night in done), *rollbacks], key=lambda event: event.place
    )


def oddities(night: Night) -> dict[str, list[str]]:
    """What came otherwise than as new files, by what happened to it: names of log files."""
    return {what: names for what, names in night.arrivals.items() if what != "new"}


def utc(at: datetime, form: str = "%Y-%m-%d %H:%M") -> str:
    return at.astimezone(UTC).strftime(form)


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def signed(number: float | None, digits: int = 4) -> str:
    return NONE if number is None else f"{number:+.{digits}f}".replace("-", "−")
