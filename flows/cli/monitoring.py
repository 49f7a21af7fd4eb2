"""The commands of those who watch over the nights, for flows/cli/main.py; as there, nothing heavy is imported before it is needed."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from common.config.params import ConfigError

ROOT = Path()
PATIENCE_H = 24.0 + 2  # a night a day, and how much later than the one before it may be
Hours = Annotated[
    float, typer.Option(min=0.003, help="A night is due so soon after the one before.")
]  # Prefect waits for no less than 10 s


def health(hours: Hours = PATIENCE_H) -> None:
    """Say whether the last night happened and which model is in production since when; exit 1 if something is amiss."""
    from flows.nightly.health import health as look

    found = look(ROOT, timedelta(hours=hours))
    typer.echo(found.line)
    for trouble in found.troubles:
        typer.echo(f"clickmill: error: {trouble}", err=True)
    raise typer.Exit(bool(found.troubles))


def alerts(
    webhook: Annotated[
        str | None,
        typer.Option(help="Gets JSON with the key text, as chats do.", envvar="CLICKMILL_WEBHOOK"),
    ] = None,
    email: Annotated[
        str | None, typer.Option(help="An address; its server is CLICKMILL_SMTP, or this machine.")
    ] = None,
    hours: Hours = PATIENCE_H,
) -> None:
    """Have the Prefect server tell of runs that failed, of nights that kept the old model and of nights that did not happen."""
    if not webhook and not email:
        raise ConfigError(
            "whom to tell? Name --webhook URL (or set CLICKMILL_WEBHOOK), --email ADDRESS, or both"
        )
    from flows.alerts import apply

    for name in apply(webhook, email, timedelta(hours=hours)):
        typer.echo(name)
