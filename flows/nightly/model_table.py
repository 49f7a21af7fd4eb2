"""Prints the models of nightly runs as a table."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.printable import printable
from flows.nightly.bundles import check_bundle
from flows.nightly.record import NightlyRun
from flows.nightly.registry import Assignment
from flows.nightly.repository import NightlyRepository

WIDTH = 400  # so that each model fits on one line, in a terminal and in a file
COLUMNS = ("model", "bundle", "began (UTC)", "log until", "AUC", "logloss", "to champion", "status")


def show(root: Path) -> None:
    """Print the models, the newest first, then the records that are damaged.

    Every bundle in artifacts/models is read as a whole, and mended if it is damaged (bundles.py).
    """
    repository = NightlyRepository(root)
    records = repository.read_records()
    runs = [run for run in reversed(records.runs) if run.decision and run.version]
    # Names and reasons are no markup: `[red]` is printed as it is.
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False, width=WIDTH)
    if not runs:
        console.print("No model yet: `clickmill nightly run` makes the first.")
    assignments = repository.assignments()
    table, problems = Table(*COLUMNS, box=None, pad_edge=False), []
    for run in runs:
        problem = _find_problem(repository, run, assignments)
        problems += [problem] if problem else []
        table.add_row(
            run.model,
            run.version,
            f"{run.started:%Y-%m-%d %H:%M}",
            printable(run.until),
            *format_metrics(run),
            describe_status(run, assignments, is_damaged=problem is not None),
        )
    if runs:
        with console.capture() as printed:
            console.print(table)
        print(*(line.rstrip() for line in printed.get().splitlines()), sep="\n")
    for line in (*problems, *records.damaged.values()):
        print(line)


def _find_problem(
    repository: NightlyRepository, run: NightlyRun, assignments: Sequence[Assignment]
) -> str | None:
    """Return why a model cannot be served; bundles that only DVC has are not checked."""
    assert run.version
    in_production = bool(assignments) and assignments[-1].run == run.number
    directory = repository.bundle_directory(run.version)
    if not in_production and not directory.exists() and not directory.is_symlink():
        return None
    problem = check_bundle(repository.root, run)
    return problem or (repository.link_problem(run.version) if in_production else None)


def describe_status(
    run: NightlyRun, assignments: Sequence[Assignment], *, is_damaged: bool = False
) -> str:
    """Return whether the model is damaged, is or was in production, or why it was rejected."""
    damaged = "damaged, see below"
    if assignments and assignments[-1].run == run.number:
        status = f"in production since {assignments[-1].at:%Y-%m-%d %H:%M}"
        return f"{status}; {damaged}" if is_damaged else status
    if is_damaged:
        return damaged
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
