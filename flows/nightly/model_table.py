"""The models that nights made, as a table on the terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.nightly.record import Night, nights
from flows.nightly.registry import Assignment, assignments

WIDTH = 400  # a line a model, in a terminal and in a file


def show(root: Path) -> None:
    """The newest first."""
    made = [night for night in reversed(nights(root)) if night.decision]
    console = Console(soft_wrap=True, highlight=False, width=WIDTH)
    if not made:
        console.print("No model yet: `clickmill night` makes the first.")
        return
    assigned = assignments(root)
    table = Table(
        "model",
        "bundle",
        "night",
        "log until",
        "AUC",
        "logloss",
        "to the champion",
        "",
        box=None,
        pad_edge=False,
    )
    for night in made:
        when, figures = f"{night.when:%Y-%m-%d %H:%M}", figures_of(night)
        table.add_row(
            night.model, night.version, when, night.until, *figures, fate(night, assigned)
        )
    with console.capture() as printed:
        console.print(table)
    print(*(line.rstrip() for line in printed.get().splitlines()), sep="\n")


def fate(night: Night, assigned: list[Assignment]) -> str:
    """What became of its model."""
    if assigned and assigned[-1].night == night.number:
        return f"in production since {assigned[-1].at:%Y-%m-%d %H:%M}"
    if served := [one for one in assigned if one.night == night.number]:
        return f"served from {served[-1].at:%Y-%m-%d %H:%M}"
    more = f" (and {len(night.reasons) - 1} more)" if night.reasons[1:] else ""
    return night.reasons[0].partition("\n")[0] + more if night.reasons else ""


def figures_of(night: Night) -> tuple[str, str, str]:
    """AUC and logloss of its test rows, and how far its logloss is from the champion's."""
    assert night.decision
    ours, difference = night.decision["challenger"], night.decision["difference"].get("logloss")
    auc = "none" if ours["auc"] is None else f"{ours['auc']:.4f}"
    return (
        auc,
        f"{ours['logloss']:.4f}",
        f"{difference['value']:+.4f}" if difference else "no champion",
    )
