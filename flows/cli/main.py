"""The command line: each command is one function of the rooms behind it. Nothing heavy is imported before a command needs it."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from common.config.params import ConfigError, load_params
from common.files import DataError
from common.logs import configure_logging
from common.subprocess_tree import die_with_parent
from flows.cli.monitoring import alerts, health
from flows.error_logging import MENDABLE
from flows.nightly.record import PRODUCTION

ROOT = Path()


class Commands(TyperGroup):
    """Turns the errors that the user can mend into one clear last line; any other keeps its traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if (
            "DVC_STAGE" in os.environ
        ):  # run by DVC: a killed dvc must not leave a stage behind that goes on writing
            die_with_parent()
        configure_logging()
        try:
            return super().main(*args, **kwargs)
        except (*MENDABLE, OSError) as error:
            for line in str(error).splitlines():
                typer.echo(f"clickmill: error: {line}", err=True)
            sys.exit(
                os.EX_DATAERR
                if isinstance(error, DataError)
                else os.EX_CONFIG
                if isinstance(error, ConfigError)
                else 1
            )


app = typer.Typer(
    cls=Commands,
    help="Raw click logs in; a trained, evaluated, versioned DLRM out. Every value is read from params.yaml in the current directory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # the last line of an error is the error, not a box around it
)


def exit_on_sigterm() -> None:
    """An exit stops the children and tidies up, a plain death does not."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@app.command()
def run() -> None:
    """Do all that is not up to date, through the Prefect flow train-dlrm, and show how good the model is."""
    from flows.dvc_stages import up_to_date
    from flows.results import Results, show

    exit_on_sigterm()
    current = up_to_date(load_params(), ROOT)
    if not current:
        from flows.prefect_server import ensure_server
        from flows.train_dlrm import train_dlrm

        ensure_server()
        try:
            train_dlrm()
        except (KeyboardInterrupt, SystemExit):
            typer.echo(
                "clickmill: stopped; the next run begins with the stage that was not done", err=True
            )
            raise
    results = Results.read(ROOT)
    show(
        results,
        f"Nothing changed since model {results.version}."
        if current
        else f"Model {results.version} is ready.",
    )


@app.command()
def night(
    until: Annotated[
        str | None,
        typer.Option(help="The last log file to take, by its name.", show_default="all there are"),
    ] = None,
) -> None:
    """Take in what is new at data.source, train, and put the model into production unless the one there is better."""
    from flows.nightly.flow import by_hand
    from flows.prefect_server import ensure_server

    exit_on_sigterm()
    ensure_server()
    by_hand(until)


app.command()(health)
app.command()(alerts)


@app.command()
def backfill(
    first: Annotated[str, typer.Argument(help="A log file of data.source, by its name.")],
    last: Annotated[
        str,
        typer.Argument(
            help="The last one; each up to it that had no night gets its own, in order."
        ),
    ],
) -> None:
    """Make up for missed nights: one for each log file, as if it had been the newest."""
    from flows.nightly.backfill import missed
    from flows.nightly.flow import by_hand
    from flows.prefect_server import ensure_server

    exit_on_sigterm()
    days = missed(load_params(), ROOT, first, last)
    print(f"backfill  {len(days)} nights: {', '.join(days) or 'none was missed'}", flush=True)
    if days:
        ensure_server()
    for day in days:
        by_hand(day)


@app.command()
def models() -> None:
    """List the models that nights made: figures, what became of them, what they were made from."""
    from flows.nightly.model_table import show

    show(ROOT)


@app.command()
def rollback(
    version: Annotated[
        str | None,
        typer.Argument(help="A model of `clickmill models`.", show_default="the one before"),
    ] = None,
    why: Annotated[str | None, typer.Option(help="Kept with the rollback.")] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also a model that its night kept out.")
    ] = False,
) -> None:
    """Put an earlier model into production, at once; twice without VERSION is there and back."""
    from flows.locks import only_registry
    from flows.nightly.history import write_history
    from flows.nightly.registry import rollback as put_back
    from flows.nightly.registry import serving, settle

    with only_registry(ROOT):
        settle(ROOT)
        before, night = serving(ROOT), put_back(ROOT, version, why, anyway=anyway)
        write_history(ROOT)
    print(
        f"rollback  {night.model} (bundle {night.version}) is in production, in place of {before}: {PRODUCTION}",
        flush=True,
    )


@app.command()
def why(
    asked: Annotated[
        str,
        typer.Argument(
            metavar="VERSION|SCORES", help="A model of `clickmill models`, or a file of scores."
        ),
    ],
) -> None:
    """Tell where a model or a file of scores comes from, down to the raw log's bytes and the code's commit."""
    from flows.nightly.provenance import why as lines

    for line in lines(ROOT, asked):
        print(line, flush=True)


@app.command()
def replay(version: Annotated[str, typer.Argument(help="A model of `clickmill models`.")]) -> None:
    """Do a past night again from its tag, in runs/replay, and see that every output comes out bit for bit the same."""
    from flows.nightly.replay import replay as once_more

    exit_on_sigterm()
    if differing := once_more(ROOT, version, lambda line: print(line, flush=True)):
        raise DataError(
            f"{version} came out otherwise: {', '.join(differing)}; is this the machine, and the environment, that made it?"
        )
    print(f"replay    {version}: all outputs are bit for bit the same", flush=True)


@app.command()
def prune(
    nights: Annotated[
        int, typer.Option(min=1, help="Of so many of the last nights all data is kept.")
    ],
    dry_run: Annotated[bool, typer.Option(help="Only tell what would go.")] = False,
) -> None:
    """Give up the data of old nights in DVC's cache; their records, and every model that served, stay."""
    from flows.locks import only_night, only_registry
    from flows.nightly.prune import prune as give_up

    with only_night(ROOT), only_registry(ROOT):
        gone = give_up(ROOT, nights, dry_run=dry_run)
    verb = "would give up" if dry_run else "gave up"
    print(
        f"prune     {verb} the data of {len(gone.nights)} nights: {gone.num_files:,} files, {gone.num_bytes / 1e6:,.1f} MB",
        flush=True,
    )


@app.command()
def sample(
    rows: Annotated[int, typer.Option(min=1, help="Rows to write.")],
    output: Annotated[
        Path,
        typer.Option(
            help="The log to write; what the best possible model reaches on it is written beside it."
        ),
    ],
    days: Annotated[
        int | None,
        typer.Option(min=1, help="Days the log spans.", show_default="data.days of params.yaml"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Another seed, another log.", show_default="sample.seed of params.yaml"
        ),
    ] = None,
) -> None:
    """Write a click log with a known best model, in the format of data.schema."""
    from common.progress import Progress
    from features.sample.generate import write_sample
    from features.schema.schema import load_schema

    params = load_params()
    num_days = params.data.days if days is None else days
    schema = load_schema(params.data.schema_name)
    with Progress("sample", rows, ROOT) as progress:
        write_sample(
            output, rows, num_days, params.sample.seed if seed is None else seed, schema, progress
        )


@app.command()
def collect() -> None:
    """Stage 1: bring the log that data.source names into artifacts/raw/."""
    from features.collect.stage import collect as stage

    stage(load_params(), ROOT)


@app.command()
def ingest() -> None:
    """Stage 2: text to typed Parquet; malformed rows go to bad_rows.parquet."""
    params = load_params()
    if params.ingest.runner == "dask":
        from flows.dask_ingest import ingest_on_dask

        ingest_on_dask(params.ingest)
    else:
        from features.ingest.stage import ingest as stage

        stage(params, ROOT)


@app.command()
def features() -> None:
    """Stage 3: fit vocabularies on the training days, then transform every row."""
    from features.encode.stage import build_features as stage

    stage(load_params(), ROOT)


@app.command()
def compact(
    unseen_days: Annotated[
        int,
        typer.Option(
            min=1, help="Values that none of so many of the last counted days has are forgotten."
        ),
    ],
) -> None:
    """Give back the table rows of values that are not seen any more: vocabularies shrink, and every day gets its ids anew."""
    from features.encode.stage import build_features

    build_features(load_params(), ROOT, forget_after_days=unseen_days)


@app.command()
def train() -> None:
    """Stage 4: train the DLRM and write the bundle artifacts/model/."""
    from features.schema.check_params import load_declared

    exit_on_sigterm()
    params = load_declared()  # what is wrong there need not wait for torch
    from training.stage import train as stage

    stage(params, ROOT)


@app.command()
def join() -> None:
    """Be one more node of every training that the first node, where the flow runs, calls for in this folder, which they share."""
    exit_on_sigterm()
    from training.distributed.launcher import join as serve

    serve(ROOT)


@app.command()
def evaluate() -> None:
    """Stage 5: score the bundle on the validation and test days and write the report."""
    params = load_params()  # a typo need not wait for torch
    from training.evaluation.stage import evaluate as stage

    stage(params, ROOT)


@app.command()
def compare(
    champion: Annotated[
        Path, typer.Option(help="The bundle to hold artifacts/model against.")
    ] = PRODUCTION,
) -> None:
    """Say whether artifacts/model may take the champion's place, by the figures of both on the same test rows."""
    params = load_params()  # a typo need not wait for torch
    from training.promotion.compare import compare as hold_against

    there_is_none = champion == PRODUCTION and not os.path.lexists(
        champion
    )  # a dangling link is one, and is refused
    hold_against(params, ROOT, None if there_is_none else champion)


@app.command()
def predict(
    model: Annotated[Path, typer.Option(help="A bundle, such as artifacts/model.")],
    input: Annotated[Path, typer.Option(help="Raw rows, with or without the label.")],
    output: Annotated[Path, typer.Option(help="The Parquet file of click probabilities to write.")],
) -> None:
    """Score raw rows with a bundle alone."""
    from training.inference.predict import predict as score

    score(model, input, output)


@app.command()
def bench(
    ids: Annotated[
        Literal["random", "trace"],
        typer.Option(
            help="random: uniform ids; trace: also the log's own, and a trace as local as they are."
        ),
    ] = "trace",
    rows: Annotated[
        int, typer.Option(min=1, help="Rows of the log, the first of its training rows.")
    ] = 100_000,
) -> None:
    """Measure how often caches of table rows hit, and how long a training step takes, on the present features."""
    params = load_params()  # a typo need not wait for torch
    from training.bench.run import bench as measure

    measure(params, ROOT, ids, rows)
