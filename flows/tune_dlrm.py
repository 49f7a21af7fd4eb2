"""The flow tune-dlrm: the search of `clickmill tune`, with its progress and results in Prefect.

The search is one child process with a journal of its own. A Prefect task for each trial would keep
their states in a second place.
"""

import json
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from common.config.params import load_params
from common.printable import markdown_text
from flows.dvc_stages import run_child
from flows.error_logging import log_expected_errors_in_one_line
from flows.train_dlrm import TASK_OPTIONS, progress_artifact
from training.tune.space import load_tune
from training.tune.study_files import REPORT, read_summary, study_folder

log_expected_errors_in_one_line()


@flow(name="tune-dlrm")
def tune_dlrm(space: str = "tune.yaml", trials: int | None = None) -> None:
    """Search for parameters with a better or cheaper model.

    Args:
        space: The settings of the search, a path in the repository.
        trials: The number of trials; None for that of `space`.
    """
    root = Path.cwd()
    load_tune(root / space, load_params(root / "params.yaml"))  # reports a mistake at once
    run_search(space, trials, root)
    publish_search(root)


@task(task_run_name="search", **TASK_OPTIONS)
def run_search(space: str, trials: int | None, root: Path) -> None:
    """Run `clickmill tune` in a child process; it resumes a search that was interrupted."""
    command = ["clickmill", "tune", "--space", space]
    if trials is not None:
        command += ["--trials", str(trials)]
    with progress_artifact("tune-progress", "trials") as (log, env):
        run_child("tune", command, root, log, env=env)


@task(task_run_name="publish", cache_policy=NO_CACHE)
def publish_search(root: Path) -> None:
    """Attach the front and the recommended change to the flow run, for Prefect's pages."""
    folder = study_folder(root, None)
    summary = read_summary(folder)
    rows = [{**one, "values": json.dumps(one["values"])} for one in summary["front"]]
    create_table_artifact(
        key="tune-front", table=rows, description=f"Pareto front of study {summary['study']}"
    )
    create_markdown_artifact(key="tune-result", markdown=markdown(summary, folder / REPORT))


def markdown(summary: dict[str, Any], report: Path) -> str:
    """Return the confirmed trials and the recommended change of params.yaml as Markdown."""
    lines = [
        f"# Study {summary['study']}",
        f"{summary['num_trials']} trials, {summary['num_stopped']} stopped early,"
        f" {summary['num_failed']} failed, {summary['rows_trained']:,} rows trained.",
        "",
    ]
    if summary["confirmed"]:
        lines += ["| model | verdict | logloss | spread |", "|---|---|---|---|"]
    for one in summary["confirmed"]:
        name = "params.yaml" if one["trial"] is None else f"trial {one['trial']}"
        if "error" in one:
            lines.append(f"| {name} | failed: {markdown_text(one['error'])} | | |")
        else:
            figures = f"{one['logloss']:.5f} | {one['spread']:.5f}"
            lines.append(f"| {name} | {one['verdict'] or ''} | {figures} |")
    if summary["diff"]:
        adopt = f"`clickmill adopt {summary['recommended']}`"
        lines += ["", f"{adopt} makes this change:", "", "```diff", summary["diff"], "```"]
    return "\n".join([*lines, "", f"Report: `{report.absolute()}`"])
