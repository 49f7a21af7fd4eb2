"""The flow ingest, which lets the workers of a Dask cluster read the new log files.

It is imported only where `dask.address` is not null.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from distributed import get_worker
from prefect import flow, get_run_logger, task
from prefect.futures import as_completed
from prefect_dask.task_runners import PrefectDaskFuture

from common.config.params import Dask, load_params
from features.ingest.object_store import ObjectStore
from features.ingest.shard import Job, ReportProgress, Shard, find_shard, ingest_file
from features.ingest.stage import ingest as run_stage
from flows.dask_cluster import TASK_OPTIONS, result_of
from flows.error_logging import log_expected_errors_in_one_line

log_expected_errors_in_one_line()


@flow(name="ingest")
def ingest() -> None:
    """Convert artifacts/raw to artifacts/parquet, with one task for each new log file."""
    root = Path.cwd()
    params = load_params(root / "params.yaml")
    run_stage(params, root, partial(read_on_workers, params.dask))


def read_on_workers(options: Dask, jobs: Sequence[Job], report: ReportProgress) -> Iterator[Shard]:
    """Give each job to a worker, and yield the shards in the order in which they are finished.

    Args:
        options: The section `dask` of params.yaml.
        jobs: The log files to read.
        report: Called with the rows and bytes of each finished file.
    """
    store = ObjectStore(options.shared_storage) if options.shared_storage else None
    submitted = {}
    for job in sorted(jobs, key=lambda job: -job.num_bytes):  # the largest file takes longest
        if store:
            store.upload_log(job)
        remote_job = replace(
            job, source=job.source.absolute(), shards_dir=job.shards_dir.absolute()
        )
        submitted[read_file.submit(remote_job, options.shared_storage)] = job
    for future in as_completed(list(submitted)):
        job = submitted[future]
        assert isinstance(future, PrefectDaskFuture)
        shard = result_of(future, job.name, options)
        if store:
            store.download_shard(job, shard)
        report(shard.num_rows + shard.num_bad_rows, job.num_bytes)
        yield shard


@task(task_run_name="{job.name}", **TASK_OPTIONS)
def read_file(job: Job, shared_storage: str | None) -> Shard:
    """Convert one log file to its shard, in job.shards_dir or in the shared storage.

    Runs on a worker.
    """
    worker = get_worker()
    store = ObjectStore(shared_storage) if shared_storage else None
    finished = store.find_shard(job) if store else find_shard(job)
    if finished:  # a worker wrote it, and died before it could report
        return finished
    get_run_logger().info("%s reads %s", worker.address, job.name)
    if store:
        return store.ingest_log(job, _ignore_progress, Path(worker.local_directory))
    return ingest_file(job, _ignore_progress)


def _ignore_progress(num_rows: int, num_bytes: int) -> None:
    """Ignore the progress within a file."""
