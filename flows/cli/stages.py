"""`clickmill stage`: the stages of dvc.yaml, one command each, and what belongs to them."""

import os
from pathlib import Path
from typing import Annotated

import typer

from common.config.params import load_params
from common.user_files import expand_home
from flows.cli.groups import make_app
from flows.cli.signals import exit_on_sigterm
from flows.nightly.record import PRODUCTION

ROOT = Path()

app = make_app(
    "Run one stage alone. `clickmill run` and `dvc repro` run those that are not up to date."
)


@app.command(epilog="Example: clickmill stage collect")
def collect() -> None:
    """Copy the log files at data.source, or the sample log, into artifacts/raw/."""
    from features.collect.stage import collect as run_stage

    run_stage(load_params(), ROOT)


@app.command(epilog="Example: clickmill stage ingest")
def ingest() -> None:
    """Convert the raw log to typed Parquet; malformed rows are written to bad_rows.parquet."""
    params = load_params()
    if params.dask.address:
        from flows.dask_cluster import run_on_cluster
        from flows.dask_ingest import ingest as ingest_flow

        run_on_cluster(params.dask, ingest_flow)
    else:
        from features.ingest.stage import ingest as run_stage

        run_stage(params, ROOT)


@app.command(epilog="Example: clickmill stage features")
def features() -> None:
    """Fit the vocabularies on the training days, then encode every row."""
    params = load_params()
    if params.dask.address:
        from flows.dask_cluster import run_on_cluster
        from flows.dask_features import features as features_flow

        run_on_cluster(params.dask, features_flow)
    else:
        from features.dataset.stage import build_features as run_stage

        run_stage(params, ROOT)


@app.command(epilog="Example: clickmill stage compact --unseen-days 30")
def compact(
    unseen_days: Annotated[
        int,
        typer.Option(
            min=1, help="Remove values that did not occur in this number of latest training days."
        ),
    ],
) -> None:
    """Remove values that no longer occur from the vocabularies; then train again."""
    from features.dataset.stage import build_features

    build_features(load_params(), ROOT, forget_after_days=unseen_days)


@app.command(epilog="Example: clickmill stage train")
def train() -> None:
    """Train the DLRM and write the bundle artifacts/model/."""
    from features.schema.check_params import load_checked_params

    exit_on_sigterm()
    params = load_checked_params()  # reports a mistake before torch is imported
    from training.adapters.unused_imports import delay_unused_imports

    delay_unused_imports()
    from training.stage import train as run_stage

    run_stage(params, ROOT)


@app.command(epilog="Example: clickmill stage join")
def join() -> None:
    """Take part in multi-node trainings that another machine starts in this folder."""
    exit_on_sigterm()
    from training.adapters.unused_imports import delay_unused_imports

    delay_unused_imports()
    from training.launch.launcher import join as join_trainings

    join_trainings(ROOT)


@app.command(epilog="Example: clickmill stage evaluate")
def evaluate() -> None:
    """Score the validation and test rows with the bundle, and write the metrics and the report."""
    params = load_params()  # reports a mistake before torch is imported
    from training.evaluation.stage import evaluate as run_stage

    run_stage(params, ROOT)


@app.command(epilog="Example: clickmill stage export")
def export() -> None:
    """Export the bundle for `clickmill serve` into artifacts/serving/."""
    exit_on_sigterm()
    params = load_params().export  # reports a mistake before torch is imported
    from training.export.stage import export_stage

    export_stage(params, ROOT)


@app.command(epilog="Example: clickmill stage compare --champion runs/models/1f2e3d4c5b6a")
def compare(
    champion: Annotated[
        Path, typer.Option(help="The bundle that artifacts/model is compared with.")
    ] = PRODUCTION,
) -> None:
    """Decide whether artifacts/model may replace the champion, on the same test rows."""
    params = load_params()  # reports a mistake before torch is imported
    from training.promotion.decide import decide_promotion

    # A dangling link is a fault, not a missing champion.
    no_champion = champion == PRODUCTION and not os.path.lexists(champion)
    decide_promotion(params, ROOT, None if no_champion else expand_home(champion))
