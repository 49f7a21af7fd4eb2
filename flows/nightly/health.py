"""Whether the nights happen: from their records in git and the link artifacts/production alone, so also where Prefect itself is down."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from common.bundle_layout import MANIFEST, version_of
from flows.nightly.record import PRODUCTION, Night, nights
from flows.nightly.record_commit import unpushed
from flows.nightly.registry import Assignment, assignments


@dataclass(frozen=True)
class Health:
    """line: what there is, in one line. troubles: what is wrong, a line each."""

    line: str
    troubles: list[str]


def health(root: Path, patience: timedelta, now: datetime | None = None) -> Health:
    """Of the nights of root: whether the last one began at most `patience` before now, and whether the model in production is all there."""
    now = now or datetime.now(UTC)
    done, assigned = nights(root), assignments(root)
    if not done:
        return Health(
            "no night yet",
            [f"no night has come to an end in {root.resolve()}; `clickmill night` runs one"],
        )
    last = done[-1]
    facts = [
        f"{last.headline}; began {last.when:%Y-%m-%d %H:%M} UTC, {hours(now - last.when)} ago",
        serving(done, assigned),
    ]
    if late := unpushed(root):
        facts.append(f"not at DVC's remote yet: night {', '.join(map(str, late))}")
    troubles = []
    if now - last.when > patience:
        troubles.append(
            f"the last night that came to an end ({last.tag}) began {hours(now - last.when)} ago, and one is due every {hours(patience)}; "
            "see the runs of nightly in Prefect, and that server and worker are up"
        )
    if broken := broken_production(root, done, assigned):
        troubles.append(broken)
    return Health("; ".join(facts), troubles)


def serving(done: list[Night], assigned: list[Assignment]) -> str:
    """Which model, since when."""
    if not assigned:
        return "no model in production"
    model = _night(done, assigned[-1])
    return f"in production {model.model} ({model.version}) since {assigned[-1].at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def broken_production(root: Path, done: list[Night], assigned: list[Assignment]) -> str | None:
    """What keeps artifacts/production from being the bundle that the tags say; None where nothing does."""
    if not assigned:
        return f"{PRODUCTION}: no model is in production; no night has promoted one"
    expected, manifest = _night(done, assigned[-1]).version, PRODUCTION / MANIFEST
    found = version_of(root / PRODUCTION) if (root / manifest).is_file() else None
    if found == expected:
        return None
    return (
        f"{manifest}: {f'version {found}' if found else 'nothing'} found, version {expected} expected by the tags; "
        "the next night puts it right, from DVC's cache or its remote"
    )


def hours(span: timedelta) -> str:
    return f"{round(span / timedelta(hours=1), 1):g} h"


def _night(done: list[Night], assigned: Assignment) -> Night:
    return next(night for night in done if night.number == assigned.night)
