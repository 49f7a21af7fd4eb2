"""The flow ingest, which lets the workers of a Dask cluster read the new log files.

It is imported only where `ingest.runner` is dask.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.settings import PREFECT_API_URL, temporary_settings

from common.config.loading import ConfigError
from common.config.params import Ingest, load_params
from common.files import DataError
from common.logs import get_logger
from common.masking import mask_passwords
from common.retry import is_worth_retrying
from features.ingest.object_store import ObjectStore
from features.ingest.shard import Job, ReportProgress, Shard, find_shard, ingest_file
from features.ingest.stage import ingest as run_stage
from flows.error_logging import log_expected_errors_in_one_line
from flows.prefect_server import ensure_server

log = get_logger("ingest")

try:
    from distributed import Client, KilledWorker, get_worker
    from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture
except ModuleNotFoundError as error:
    package = str(error.name).partition(".")[0]
    raise ConfigError(
        f"ingest.runner is dask, but {package} is not installed: pip install 'clickmill[dask]', "
        "here and on the workers, or set ingest.runner to local"
    ) from None

RETRIES, RETRY_DELAY_S = 2, 2
ANSWER_WITHIN_S = 10.0

log_expected_errors_in_one_line()


def ingest_on_dask(options: Ingest) -> None:
    """Run the stage ingest on the cluster at ingest.dask_address.

    Raises:
        ConnectionError: The scheduler, a worker or the shared storage cannot be used; it says why.
    """
    address = str(options.dask_address)
    try:
        cluster = Client(address, timeout=ANSWER_WITHIN_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"ingest.dask_address: no Dask scheduler answers at {mask_passwords(address)} "
            f"({mask_passwords(str(error))}); start one (dask scheduler), or correct the address"
        ) from None
    with cluster:
        server = ensure_server()
        faults = cluster.run(examine_worker, server, on_error="return")
    for worker, fault in faults.items():
        if fault:
            raise ConnectionError(
                f"ingest.dask_address: the worker at {worker} cannot do the work: {fault}"
            )
    log.info(f"{len(faults)} workers at {address}")
    with temporary_settings({PREFECT_API_URL: server}):  # the workers report to the same server
        ingest.with_options(task_runner=DaskTaskRunner(address=address))()  # type: ignore[arg-type]


def examine_worker(server: str) -> str | None:
    """Return what keeps a worker from taking part, None if nothing does. Runs on the worker.

    Every task begins with a call of the Prefect server.
    """
    try:
        httpx.get(f"{server}/health", timeout=ANSWER_WITHIN_S)
    except httpx.TransportError as error:
        return (
            f"no Prefect server answers it at {mask_passwords(server)} ({error}); "
            "set PREFECT_API_URL here to a server that all machines reach"
        )
    return None


@flow(name="ingest")
def ingest() -> None:
    """Convert artifacts/raw to artifacts/parquet, with one task for each new log file."""
    root = Path.cwd()
    params = load_params(root / "params.yaml")
    run_stage(params, root, partial(read_on_workers, params.ingest))


def read_on_workers(
    options: Ingest, jobs: Sequence[Job], report: ReportProgress
) -> Iterator[Shard]:
    """Give each job to a worker, and yield the shards in the order in which they are finished.

    Args:
        options: The section `ingest` of params.yaml.
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
        try:
            shard = future.result()
        except KilledWorker as error:
            raise DataError(f"{job.name}: {error}") from None
        except CancelledError as error:
            raise ConnectionError(
                "ingest.dask_address: the cluster at "
                f"{mask_passwords(str(options.dask_address))} gave up: {error}"
            ) from None
        assert isinstance(future, PrefectDaskFuture)
        # Otherwise Dask would read the file again if the worker died, to have the answer again.
        future.wrapped_future.release()
        if store:
            store.download_shard(job)
        report(shard.num_rows + shard.num_bad_rows, job.num_bytes)
        yield shard


@task(
    task_run_name="{job.name}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_S,
    retry_condition_fn=lambda _task, _run, state: is_worth_retrying(state.data),
    cache_policy=NO_CACHE,
)
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
