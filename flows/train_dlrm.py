"""The flow train-dlrm: DVC's stages one after the other, each a task that can be watched, retried and cancelled.

DVC alone knows what a stage is and whether it is stale, so `dvc repro` and this flow leave the same dvc.lock. Prefect caches nothing.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import State, flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException

from common.config.params import ConfigError, load_params
from common.files import DataError
from features.schema.check_params import check_declared
from flows.dvc_stages import StageFailed, repro, stage_names
from flows.error_logging import errors_in_one_line
from flows.locks import only_training
from flows.results import Results, markdown

PERCENT = re.compile(r"\w+\s+(\d+) %")  # how a stage's progress line begins
RETRIES, RETRY_DELAY_S = 1, 2

errors_in_one_line()


@flow(name="train-dlrm")
def train_dlrm() -> None:
    """Raw click log to evaluated, versioned DLRM: every stage of dvc.yaml in order, each done only if what it depends on changed."""
    root = Path.cwd()
    check_declared(load_params(root / "params.yaml"))  # a typo fails here, at once
    with only_training(root, get_run_logger().info):
        for stage in stage_names(root):
            run_stage(stage, root)
        publish()


def may_pass(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Whether to try again: not where the log, params.yaml or the set-up is at fault."""
    error = state.result(raise_on_failure=False)
    return not (
        isinstance(error, (ConfigError, DataError))
        or (isinstance(error, StageFailed) and (error.of_data or error.of_setup))
    )


@task(
    task_run_name="{stage}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_S,
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
)
def run_stage(stage: str, root: Path) -> None:
    """Bring one DVC stage up to date, by the code that stands in root."""
    logger = get_run_logger()
    bar = create_progress_artifact(
        progress=0.0, key=f"{stage}-progress", description=f"stage {stage}"
    )
    assert isinstance(bar, UUID)

    def log(line: str) -> None:
        logger.info(line)
        if percent := PERCENT.match(line):
            show_progress(bar, float(percent[1]))

    repro(stage, root, log)
    show_progress(bar, 100.0)


@task(task_run_name="publish", cache_policy=NO_CACHE)
def publish() -> None:
    """Leave the metrics and the report with the run, for Prefect's pages."""
    root = Path.cwd()
    results = Results.read(root)
    create_table_artifact(key="metrics", table=results.rows, description=f"model {results.version}")
    create_markdown_artifact(key="report", markdown=markdown(results, root))


def show_progress(bar: UUID, percent: float) -> None:
    """A server that is away for a moment must not end a stage."""
    with suppress(httpx.HTTPError, PrefectException):
        update_progress_artifact(bar, progress=percent)
