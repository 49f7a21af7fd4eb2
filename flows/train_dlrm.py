"""The flow train-dlrm: the stages of dvc.yaml, each a task.

DVC alone decides whether a stage is stale, so `dvc repro` and this flow leave the same dvc.lock.
Prefect caches nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException

from common.config.params import load_params
from common.progress import PROGRESS_FILE, read_percent
from common.retry import is_worth_retrying
from features.schema.check_params import check_against_schema
from flows.dvc_stages import repro, stage_names
from flows.error_logging import log_expected_errors_in_one_line
from flows.locks import training_lock
from flows.results import Results, markdown

# The options of a task that runs a child process.
TASK_OPTIONS: dict[str, Any] = {
    "retries": 1,
    "retry_delay_seconds": 2,
    "retry_condition_fn": lambda _task, _run, state: is_worth_retrying(
        state.result(raise_on_failure=False)
    ),
    "cache_policy": NO_CACHE,
}

log_expected_errors_in_one_line()


@flow(name="train-dlrm")
def train_dlrm() -> None:
    """Run every stage of dvc.yaml that is not up to date: raw click log in, evaluated DLRM out."""
    root = Path.cwd()
    params = load_params(root / "params.yaml")
    check_against_schema(params)  # reports a mistake before any stage runs
    with training_lock(root, get_run_logger().info):
        for stage in stage_names(root):
            run_stage(stage, root)
        publish()


@task(task_run_name="{stage}", **TASK_OPTIONS)
def run_stage(stage: str, root: Path) -> None:
    """Bring one stage up to date, and show its progress as a Prefect artifact."""
    with progress_artifact(f"{stage}-progress", f"stage {stage}") as (log, env):
        repro(stage, root, log, env=env)


@task(task_run_name="publish", cache_policy=NO_CACHE)
def publish() -> None:
    """Attach the metrics and the report to the flow run, for Prefect's pages."""
    root = Path.cwd()
    results = Results.read(root)
    create_table_artifact(key="metrics", table=results.rows, description=f"model {results.version}")
    create_markdown_artifact(key="report", markdown=markdown(results, root))


@contextmanager
def progress_artifact(
    key: str, description: str
) -> Iterator[tuple[Callable[[str], None], dict[str, str]]]:
    """Show the progress of a child process as a Prefect artifact, which ends with 100 %.

    Args:
        key: The key of the artifact.
        description: Its description.

    Yields:
        The function that receives each line of the child, and logs it; and the environment
        variables by which the child says how much is done.
    """
    logger = get_run_logger()
    bar = create_progress_artifact(progress=0.0, key=key, description=description)
    assert isinstance(bar, UUID)
    with TemporaryDirectory(prefix="clickmill-") as directory:
        file = Path(directory) / "percent"
        shown = 0.0

        def log(line: str) -> None:
            nonlocal shown
            logger.info(line)
            percent = read_percent(file)
            if percent is not None and percent != shown:
                shown = percent
                show_progress(bar, percent)

        yield log, {PROGRESS_FILE: str(file)}
    show_progress(bar, 100.0)


def show_progress(bar: UUID, percent: float) -> None:
    """Update the progress artifact. A server that is away for a moment does not end the stage."""
    with suppress(httpx.HTTPError, PrefectException):
        update_progress_artifact(bar, progress=percent)
