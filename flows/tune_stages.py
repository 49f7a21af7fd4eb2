"""Brings the features up to date before `clickmill tune`, and prints what it has found."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flows.dvc_stages import repro
from flows.locks import training_lock

if TYPE_CHECKING:
    from training.tune.summary import Summary

FEATURE_STAGES = ("collect", "ingest", "features")


def bring_features_up_to_date(root: Path) -> None:
    """Run the stages up to the features that are stale, as `clickmill run` does.

    Raises:
        StageFailed: A stage failed.
    """
    with training_lock(root, print):
        for stage in FEATURE_STAGES:
            repro(stage, root, print)


def show(summary: "Summary", report: Path) -> None:
    """Print the confirmed trials, or the front if there are none, and what to do next."""
    console = Console(highlight=False)
    console.print(_confirmed(summary) if summary.candidates else _front(summary))
    best = summary.recommended
    if best is not None:
        console.print(
            f"Recommended: trial {best.trial}. Compared with params.yaml it is {best.verdict}."
        )
        console.print(f"Next: clickmill adopt {best.trial}")
    elif summary.candidates:
        console.print(
            "Recommended: none. No trial is better than params.yaml, or as good and cheaper."
        )
    console.print(f"Report: {report}", soft_wrap=True)


def _confirmed(summary: "Summary") -> Table:
    table = Table("model", "verdict", "logloss", "spread", summary.cost)
    for one in summary.candidates:
        name = "params.yaml" if one.trial is None else f"trial {one.trial}"
        if one.error:
            table.add_row(name, "failed", "", "", "")
        else:
            logloss, spread = f"{one.logloss:.5f}", f"{one.spread:.5f}"
            table.add_row(name, one.verdict or "", logloss, spread, f"{one.costs[summary.cost]:,}")
    return table


def _front(summary: "Summary") -> Table:
    table = Table("trial", "logloss", summary.cost)
    for one in summary.front:
        assert one.outcome.result is not None
        cost = getattr(one.outcome.result, summary.cost)
        table.add_row(str(one.number), f"{one.outcome.result.logloss:.5f}", f"{cost:,}")
    return table
