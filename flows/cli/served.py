"""The command `clickmill served`."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.config.params import load_params
from common.printable import printable
from flows.cli.signals import exit_on_sigterm

if TYPE_CHECKING:
    from training.served.figures import ServedFigures, VersionFigures

ROOT = Path()
DAY = ["%Y-%m-%d"]
WIDTH = 400  # so that each version fits on one line, in a terminal and in a file


def served(
    log: Annotated[
        list[Path],
        typer.Option(
            help="The log with the labels: a file, a folder, a glob pattern, or - for standard "
            "input. It may be repeated."
        ),
    ],
    requests: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the request log.", show_default="serve.request_log of params.yaml"
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The column of the log with the keys of the request log.",
            show_default="serve.log_key of params.yaml",
        ),
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A bundle of a served version, or a folder of bundles. It may be repeated.",
            show_default="those in artifacts/",
        ),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(formats=DAY, help="The first day of the request log to read, in UTC."),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=DAY, help="The last day of the request log to read.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The HTML report to write.")] = None,
    json: Annotated[Path | None, typer.Option(help="The file of all figures to write.")] = None,
) -> None:
    """Join what was served with the labels that came later: online calibration, drift and skew."""
    exit_on_sigterm()
    params = load_params()
    from training.served.stage import examine_served

    figures = examine_served(
        params,
        ROOT,
        requests,
        log,
        key,
        model or [],
        since=since.date() if since else None,
        until=until.date() if until else None,
        output=output,
        json=json,
    )
    _show(figures)


def _show(figures: "ServedFigures") -> None:
    """Print a table with a line for each version."""
    from rich.console import Console
    from rich.table import Table

    # Names of models and columns are no markup.
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False, width=WIDTH)
    rows = [_row(one) for one in figures.versions]
    if not rows:
        print("The request log has no rows.")
        return
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(printable, row.values()))
    with console.capture() as printed:
        console.print(table)
    print(*(line.rstrip() for line in printed.get().splitlines()), sep="\n")


def _row(one: "VersionFigures") -> dict[str, str]:
    metrics, share = one.metrics, one.joined_share
    return {
        "model": one.model,
        "version": one.version,
        "role": one.role,
        "rows": f"{one.num_rows:,}",
        "served": f"{one.num_served:,}",
        "joined": "none" if share is None else f"{share:.1%}",
        "mean score": f"{one.mean_score:.4f}",
        "click rate": f"{metrics.label_rate:.4f}" if metrics else "-",
        "pred/obs": _number(metrics.calibration_ratio if metrics else None, 3),
        "ECE": _number(metrics.ece if metrics else None, 4),
        "logloss": _number(metrics.logloss if metrics else None, 4),
        "AUC": _number(metrics.auc if metrics else None, 4),
        "largest drift": f"{one.drift.column} {one.drift.value:.3f}" if one.drift else "-",
        "largest skew": f"{one.skew.column} {one.skew.value:.2%}" if one.skew else "-",
    }


def _number(number: float | None, digits: int) -> str:
    return "-" if number is None else f"{number:.{digits}f}"
