"""The flow features, which lets the workers of a Dask cluster do the jobs of the features stage.

It is imported only where `dask.address` is not null.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from distributed import get_worker
from prefect import flow, get_run_logger, task
from prefect_dask.task_runners import PrefectDaskFuture

from common.config.params import Dask, load_params
from common.layout import FEATURES
from features.dataset.stage import build_features
from features.distributed.cluster import Cluster
from features.distributed.exchange import Exchange, FolderExchange, StoreExchange
from features.distributed.jobs import Job
from flows.dask_cluster import TASK_OPTIONS, result_of
from flows.error_logging import log_expected_errors_in_one_line

EXCHANGE = FEATURES.with_name(".features.exchange")

log_expected_errors_in_one_line()


@flow(name="features")
def features() -> None:
    """Make artifacts/features, with a task for each job."""
    root = Path.cwd()
    params = load_params(root / "params.yaml")
    exchange: Exchange = FolderExchange(root / EXCHANGE)
    if params.dask.shared_storage:
        exchange = StoreExchange(params.dask.shared_storage, f"features-{uuid4().hex}")
    exchange.remove()  # of a run that was killed
    cluster = Cluster(partial(run_on_workers, params.dask), exchange)
    try:
        build_features(params, root, counter=cluster, write=cluster.write_days)
    finally:
        exchange.remove()


def run_on_workers(options: Dask, jobs: Iterable[Job]) -> Iterator[Any]:
    """Give each job to a worker, and yield the results in the order of the jobs."""
    submitted = [(job, run_job.submit(job, job.title)) for job in jobs]
    try:
        for job, future in submitted:
            assert isinstance(future, PrefectDaskFuture)
            yield result_of(future, job.title, options)
    except BaseException:
        for _, future in submitted:
            assert isinstance(future, PrefectDaskFuture)
            future.wrapped_future.cancel()
        raise


@task(task_run_name="{title}", **TASK_OPTIONS)
def run_job(job: Job, title: str) -> Any:
    """Do a job. Runs on a worker."""
    get_run_logger().info("%s: %s", get_worker().address, title)
    return job.run()
