"""`clickmill tune dims`: the search for the embedding dim of each column."""

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.signals import exit_on_sigterm

ROOT = Path()


def add(app: typer.Typer) -> None:
    """Add the command to the group `clickmill tune`."""
    app.command(epilog="Example: clickmill tune dims --budget 0.25 --seeds 3")(dims)


def dims(
    budget: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=1,
            help="The share of the parameters of the embedding tables that the result may have.",
        ),
    ] = 0.25,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, help="The number of seeds that the result is trained with from scratch."
        ),
    ] = 1,
) -> None:
    """Search for the embedding dim of each categorical column, 0 for columns to leave out.

    It brings the features up to date, prints the section model.tables for params.yaml and writes
    runs/tune/dims.json.
    """
    exit_on_sigterm()
    from common.config.yaml_text import flow
    from features.schema.check_params import load_checked_params

    params = load_checked_params(ROOT)  # reports a mistake before torch is imported
    from flows import tune_stages
    from training.tune.dims import RESULT, search_dims

    tune_stages.bring_features_up_to_date(ROOT)

    try:
        found = search_dims(params, ROOT, budget, seeds)
    except (KeyboardInterrupt, SystemExit) as stop:
        typer.echo("clickmill: stopped; nothing was written", err=True)
        # Lightning exits with status 1 after Ctrl-C, which would look like a failed training.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    for line in _confirmed(found["confirmed"]):
        typer.echo(line)
    typer.echo(
        f"\n{ROOT / RESULT} has all figures. To use the dims, put this into params.yaml:\n\nmodel:"
    )
    typer.echo(f"  tables: {flow(found['tables'])}")


def _confirmed(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each model: its numbers, and its validation logloss over the seeds."""
    lines = [f"{'model':<12}  {'table parameters':>16}  validation logloss"]
    for name in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == name]
        losses = [row["logloss"] for row in of_model if row["error"] is None]
        shown = f"{statistics.fmean(losses):.5f}" if losses else "failed"
        if len(losses) > 1:
            shown += f"  ({', '.join(f'{loss:.5f}' for loss in losses)})"
        errors = "; ".join(row["error"] for row in of_model if row["error"])
        lines.append(f"{name:<12}  {of_model[0]['table_numbers']:>16,}  {shown}  {errors}".rstrip())
    return lines
