"""Prints the models of nightly runs as a table."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.printable import printable
from flows.nightly.record import NightlyRun
from flows.nightly.registry import Assignment
from flows.nightly.repository import NightlyRepository

WIDTH = 400  # so that each model fits on one line, in a terminal and in a file
COLUMNS = ("model", "bundle", "began (UTC)", "log until", "AUC", "logloss", "to champion", "status")


def show(root: Path) -> None:
    """Print the models, the newest first."""
    repository = NightlyRepository(root)
    runs = [run for run in reversed(repository.runs()) if run.decision]
    console = Console(soft_wrap=True, highlight=False, markup=False, width=WIDTH)
    if not runs:
        console.print("No model yet: `clickmill nightly run` makes the first.")
        return
    assignments = repository.assignments()
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for run in runs:
        table.add_row(
            run.model,
            run.version,
            f"{run.started:%Y-%m-%d %H:%M}",
            printable(run.until),
            *format_metrics(run),
            describe_status(run, assignments),
        )
    with console.capture() as printed:
        console.print(table)
    print(*(line.rstrip() for line in printed.get().splitlines()), sep="\n")


def describe_status(run: NightlyRun, assignments: Sequence[Assignment]) -> str:
    """Return whether the model is or was in production, or else why it was rejected."""
    if assignments and assignments[-1].run == run.number:
        return f"in production since {assignments[-1].at:%Y-%m-%d %H:%M}"
    earlier = [assignment for assignment in assignments if assignment.run == run.number]
    if earlier:
        return f"in production from {earlier[-1].at:%Y-%m-%d %H:%M}, then replaced"
    if not run.reasons:
        return ""
    first = printable(run.reasons[0].partition("\n")[0])
    more = f" (and {len(run.reasons) - 1} more)" if len(run.reasons) > 1 else ""
    return f"rejected: {first}{more}"


def format_metrics(run: NightlyRun) -> tuple[str, str, str]:
    """Return AUC and logloss on the test rows, and the difference of logloss to the champion."""
    assert run.decision
    metrics, difference = run.decision["challenger"], run.decision["difference"].get("logloss")
    auc = "none" if metrics["auc"] is None else f"{metrics['auc']:.4f}"
    versus = f"{difference['value']:+.4f}" if difference else "no champion"
    return auc, f"{metrics['logloss']:.4f}", versus
