"""`clickmill tune` and `clickmill adopt`: the search for a better or cheaper model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli import tune_dims
from flows.cli.groups import make_app
from flows.cli.signals import exit_on_sigterm

ROOT = Path()

app = make_app("Search for parameters with a better or cheaper model.", no_args_is_help=False)
tune_dims.add(app)


@app.callback(
    invoke_without_command=True, epilog="Example: clickmill tune --space tune.yaml --trials 20"
)
def tune(
    context: typer.Context,
    space: Annotated[Path, typer.Option(help="The settings of the search.")] = Path("tune.yaml"),
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="The number of trials.", show_default="trials of tune.yaml"),
    ] = None,
    runner: Annotated[
        Literal["local", "dask"],
        typer.Option(help="Who runs the trials: this machine, or the cluster at dask.address."),
    ] = "local",
) -> None:
    """Run the trials of tune.yaml, confirm the best ones and write a report.

    A search that was interrupted goes on where it ended. `clickmill adopt` writes the values of a
    trial into params.yaml.
    """
    if context.invoked_subcommand is not None:
        return
    exit_on_sigterm()
    from features.schema.check_params import load_checked_params
    from training.tune.space import load_tune

    params = load_checked_params(ROOT)
    settings = load_tune(space, params)  # reports a mistake before any stage runs
    from flows.tune_stages import bring_features_up_to_date, show

    bring_features_up_to_date(ROOT)
    from training.tune.pool import LocalPool
    from training.tune.search import load_study, run_study

    study = load_study(params, ROOT, space, trials)
    if runner == "dask":
        from flows.dask_trials import DaskPool

        summary, report = run_study(study, DaskPool(params.dask, settings.window))
    else:
        summary, report = run_study(study, LocalPool(settings.parallel))
    show(summary, report)


def adopt(
    trial: Annotated[int, typer.Argument(min=0, help="The number of a trial.")],
    study: Annotated[
        str | None, typer.Option(help="The key of its study.", show_default="the last one")
    ] = None,
) -> None:
    """Write the values of a trial of `clickmill tune` into params.yaml, and show what changed."""
    from difflib import unified_diff

    from training.tune.adopt import adopt as write_values

    path = ROOT / "params.yaml"
    before = path.read_text(encoding="utf-8").splitlines()
    if not write_values(ROOT, trial, study):
        typer.echo("params.yaml has these values already.")
        return
    after = path.read_text(encoding="utf-8").splitlines()
    for line in unified_diff(before, after, "params.yaml", "params.yaml", n=0, lineterm=""):
        typer.echo(line)
    typer.echo("\nNext: commit params.yaml, then clickmill run")
