"""`clickmill tune` and `clickmill adopt`: the search for a better or cheaper model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli import tune_dims
from flows.cli.groups import make_app
from flows.cli.signals import exit_on_sigterm

ROOT = Path()
UNCHANGED = "params.yaml has these values already."

app = make_app(
    "Search for parameters with a better or cheaper model: run the trials of tune.yaml, train the"
    " best ones again with other seeds, and write a report. A search that was interrupted goes on"
    " where it ended. `clickmill adopt` writes the values of a trial into params.yaml.",
    no_args_is_help=False,
)
tune_dims.add(app)


@app.callback(
    invoke_without_command=True, epilog="Example: clickmill tune --space tune.yaml --trials 20"
)
def tune(
    context: typer.Context,
    space: Annotated[Path, typer.Option(help="The file with the settings of the search.")] = Path(
        "tune.yaml"
    ),
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="The number of trials.", show_default="trials of tune.yaml"),
    ] = None,
    runner: Annotated[
        Literal["local", "dask"],
        typer.Option(
            help="local: this machine runs the trials; dask: the cluster at dask.address."
        ),
    ] = "local",
) -> None:
    """Run the search, unless a command of the group is named."""
    if context.invoked_subcommand is not None:
        return
    exit_on_sigterm()
    from features.schema.check_params import load_checked_params
    from training.tune.space import load_tune

    params = load_checked_params(ROOT)
    settings = load_tune(space, params)  # reports a mistake before any stage runs
    if trials is not None:
        settings = settings.model_copy(update={"trials": trials})
    from flows.tune_stages import bring_features_up_to_date, show

    bring_features_up_to_date(ROOT)
    from training.adapters.unused_imports import delay_unused_imports

    delay_unused_imports()
    from training.tune.pool import LocalPool
    from training.tune.search import run_study
    from training.tune.study import Study

    study = Study(params, settings, ROOT)
    if runner == "dask":
        from flows.dask_trials import DaskPool

        summary, report = run_study(study, DaskPool(params.dask, settings.window))
    else:
        summary, report = run_study(study, LocalPool(settings.parallel))
    show(summary, report)


def adopt(
    trial: Annotated[int, typer.Argument(min=0, help="The number of a trial.")],
    study: Annotated[
        str | None,
        typer.Option(
            help="The study of the trial: a folder name in runs/tune.", show_default="the last one"
        ),
    ] = None,
) -> None:
    """Write the values of a trial of `clickmill tune` into params.yaml, and show what changed."""
    from training.tune.adopt import adopt as write_values

    diff = write_values(ROOT, trial, study)
    typer.echo(f"{diff}\n\nNext: commit params.yaml, then clickmill run" if diff else UNCHANGED)
