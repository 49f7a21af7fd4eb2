"""`clickmill nightly`: nightly retraining, the models that it made, and its supervision."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from common.config.loading import ConfigError
from common.config.params import load_params
from common.files import DataError
from common.printable import printable, printable_lines
from flows.cli.groups import make_app
from flows.cli.signals import exit_on_sigterm
from flows.nightly.record import PRODUCTION

ROOT = Path()
MAX_HOURS = 24.0 + 2  # one run a day, which may end up to two hours later than the one before it

app = make_app(
    "Retrain every night, promote only a model that is not worse, and look after the result."
)

Version = Annotated[str, typer.Argument(help="A model of `clickmill nightly list`.")]
MIN_HOURS = 0.003  # Prefect waits for no less than 10 s


@app.command(epilog="Example: clickmill nightly run --until day_20260103.tsv")
def run(
    until: Annotated[
        str | None,
        typer.Option(help="The name of the last log file or day to use.", show_default="all files"),
    ] = None,
) -> None:
    """Train on the log with its new files, and promote the model unless it is worse."""
    from flows.prefect_server import start_server

    exit_on_sigterm()
    wait_for_server = start_server()  # it starts while the flow is imported
    from flows.nightly.flow import run_by_hand

    wait_for_server()
    run_by_hand(until)


@app.command(epilog="Example: clickmill nightly backfill day_20260101.tsv day_20260103.tsv")
def backfill(
    first: Annotated[str, typer.Argument(help="The name of a log file or day of data.source.")],
    last: Annotated[
        str,
        typer.Argument(help="The last one. Each up to it that had no nightly run gets one."),
    ],
) -> None:
    """Make up for missed nightly runs: one for each day of the log, in order."""
    from flows.nightly.backfill import missed
    from flows.nightly.flow import run_by_hand
    from flows.prefect_server import ensure_server

    exit_on_sigterm()
    days = missed(load_params(), ROOT, first, last)
    typer.echo(
        f"backfill  {len(days)} nightly runs: {printable(', '.join(days)) or 'none was missed'}"
    )
    if days:
        ensure_server()
    for day in days:
        run_by_hand(day)


@app.command("list", epilog="Example: clickmill nightly list")
def list_models() -> None:
    """List the models of all nightly runs: metrics, status, and what they were made from."""
    from flows.nightly.model_table import show

    show(ROOT)


@app.command(epilog="Example: clickmill nightly rollback --why 'complaints since Monday'")
def rollback(
    version: Annotated[
        str | None,
        typer.Argument(
            help="A model of `clickmill nightly list`.", show_default="the one before today's"
        ),
    ] = None,
    why: Annotated[str | None, typer.Option(help="A reason, recorded with the rollback.")] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Accept a model that its nightly run rejected.")
    ] = False,
) -> None:
    """Put an earlier model into production at once."""
    from flows.locks import registry_lock
    from flows.nightly.repository import NightlyRepository

    repository = NightlyRepository(ROOT)
    seen = repository.assignments()
    with registry_lock(ROOT):
        before, promoted = repository.rollback(version, why, anyway=anyway, seen=seen)
    typer.echo(
        f"rollback  {promoted.model} (bundle {promoted.version}) is in production, "
        f"in place of {before}: {PRODUCTION}"
    )


@app.command(epilog="Example: clickmill nightly explain runs/scores.parquet")
def explain(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="VERSION|SCORES",
            help="A model of `clickmill nightly list`, or a file of scores.",
        ),
    ],
) -> None:
    """Report the raw log, the code and the parameters behind a model or a file of scores."""
    from flows.nightly.provenance import explain as describe

    for line in describe(ROOT, subject):
        typer.echo(printable_lines(line))


@app.command(epilog="Example: clickmill nightly replay v7")
def replay(version: Version) -> None:
    """Execute a past nightly run again, and compare every output bit for bit."""
    from flows.nightly.replay import replay as run_again

    exit_on_sigterm()
    if differing := run_again(ROOT, version, typer.echo):
        raise DataError(
            f"{version}: these outputs differ: {', '.join(differing)}; "
            "are this machine and its environment those of the first run?"
        )
    typer.echo(f"replay    {version}: all outputs are the same, bit for bit")


@app.command(epilog="Example: clickmill nightly prune --runs 30 --dry-run")
def prune(
    runs: Annotated[
        int,
        typer.Option(
            "--runs",
            "--nights",  # the name of earlier versions
            min=1,
            help="Keep all data of this number of latest nightly runs.",
        ),
    ],
    dry_run: Annotated[bool, typer.Option(help="Only report what would be deleted.")] = False,
) -> None:
    """Delete the data of old nightly runs; records, and models that were in production, stay."""
    from flows.locks import nightly_lock, registry_lock
    from flows.nightly.prune import prune as delete_data

    with nightly_lock(ROOT), registry_lock(ROOT):
        pruned = delete_data(ROOT, runs, dry_run=dry_run)
    verb = "would delete" if dry_run else "deleted"
    typer.echo(
        f"prune     {verb} the data of {len(pruned.runs)} nightly runs: "
        f"{pruned.num_files:,} files, {pruned.num_bytes / 1e6:,.1f} MB"
    )


@app.command(epilog="Example: clickmill nightly health --hours 26")
def health(
    hours: Annotated[
        float,
        typer.Option(
            min=MIN_HOURS,
            help="Report a problem if the last nightly run began more than this many hours ago.",
        ),
    ] = MAX_HOURS,
    server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A server of `clickmill serve`, such as http://127.0.0.1:8000, which must serve "
            "the model in production. It may be repeated.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token of the servers.")
    ] = None,
) -> None:
    """Report the last nightly run and the model in production; exit 1 if there is a problem."""
    from flows.nightly.health import health as examine
    from flows.nightly.served_models import Server
    from serving.server import find_token

    token = find_token(token_file)
    servers = [Server(url, token) for url in server or ()]
    found = examine(ROOT, timedelta(hours=hours), servers=servers)
    typer.echo(printable_lines(found.summary))
    for problem in found.problems:
        typer.echo(f"clickmill: error: {printable(problem)}", err=True)
    raise typer.Exit(bool(found.problems))


@app.command(epilog="Example: clickmill nightly alerts --email team@example.org")
def alerts(
    webhook: Annotated[
        str | None,
        typer.Option(
            help="A URL that receives JSON with the key `text`, as chat services do.",
            envvar="CLICKMILL_WEBHOOK",
        ),
    ] = None,
    email: Annotated[
        str | None,
        typer.Option(help="An address; the mail server is CLICKMILL_SMTP, or this machine."),
    ] = None,
    hours: Annotated[
        float,
        typer.Option(
            min=MIN_HOURS, help="Alert if no nightly run has ended for this number of hours."
        ),
    ] = MAX_HOURS,
) -> None:
    """Let the Prefect server report failed runs, rejected models and missing nightly runs."""
    if not webhook and not email:
        raise ConfigError(
            "no receiver: name --webhook URL (or set CLICKMILL_WEBHOOK), --email ADDRESS, or both"
        )
    from flows.alerts import apply

    for name in apply(webhook, email, timedelta(hours=hours)):
        typer.echo(name)
