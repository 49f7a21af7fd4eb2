"""The flow ingest: the workers of an existing Dask cluster read the new log files. Imported only where ingest.runner is dask."""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import as_completed
from prefect.settings import PREFECT_API_URL, temporary_settings

from common.config.params import ConfigError, Ingest, load_params
from common.files import DataError
from common.logs import get_logger
from features.ingest.object_store import Store
from features.ingest.shard import Job, Report, Shard, find, ingest_file
from features.ingest.stage import ingest as stage
from flows.error_logging import log_expected_errors_in_one_line
from flows.prefect_server import ensure_server

log = get_logger("ingest")

try:
    from distributed import Client, KilledWorker, get_worker
    from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture
except ModuleNotFoundError as error:
    package = str(error.name).partition(".")[0]
    raise ConfigError(
        f"ingest.runner is dask, but {package} is not installed: pip install 'clickmill[dask]', here and on the workers; or set it to local"
    ) from None

RETRIES, RETRY_DELAY_S = 2, 2
ANSWER_WITHIN_S = 10.0

log_expected_errors_in_one_line()


def ingest_on_dask(options: Ingest) -> None:
    """The stage ingest, by the flow, on the cluster at ingest.dask_address. Raises ConnectionError when it cannot do the work, and why."""
    address = str(options.dask_address)
    try:
        cluster = Client(address, timeout=ANSWER_WITHIN_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"ingest.dask_address: no Dask scheduler answers at {address} ({error}); start it: dask scheduler"
        ) from None
    with cluster:
        server = ensure_server()
        faults = cluster.run(fault_of_worker, server, on_error="return")
    for worker, fault in faults.items():
        if fault:
            raise ConnectionError(
                f"ingest.dask_address: the worker at {worker} cannot do the work: {fault}"
            )
    log.info(f"{len(faults)} workers at {address}")
    with temporary_settings(
        {PREFECT_API_URL: server}
    ):  # they travel along: the workers report to the same server
        ingest.with_options(task_runner=DaskTaskRunner(address=address))()  # type: ignore[arg-type]


def fault_of_worker(server: str) -> str | None:
    """Runs on a worker, which has clickmill if it comes to that. Every task begins with a call of the Prefect server."""
    try:
        httpx.get(f"{server}/health", timeout=ANSWER_WITHIN_S)
    except httpx.TransportError as error:
        return f"no Prefect server answers it at {server} ({error}); set PREFECT_API_URL, here, to one that all machines reach"
    return None


@flow(name="ingest")
def ingest() -> None:
    """artifacts/raw to artifacts/parquet, a task per new log file."""
    root = Path.cwd()
    params = load_params(root / "params.yaml")
    stage(params, root, partial(over_workers, params.ingest))


def over_workers(options: Ingest, jobs: Sequence[Job], report: Report) -> Iterator[Shard]:
    """The mapper (see features.ingest) that hands each job to a worker; shards come as they are finished."""
    store = Store(options.shared_storage) if options.shared_storage else None
    submitted = {}
    for job in sorted(
        jobs, key=lambda job: -job.num_bytes
    ):  # the largest begun last would be waited for alone
        if store:
            store.put(job)
        there = replace(job, source=job.source.absolute(), parts=job.parts.absolute())
        submitted[read_file.submit(there, options.shared_storage)] = job
    for future in as_completed(list(submitted)):
        job = submitted[future]
        try:
            shard = future.result()
        except KilledWorker as error:
            raise DataError(f"{job.source.name}: {error}") from None
        except CancelledError as error:
            raise ConnectionError(
                f"ingest.dask_address: the cluster at {options.dask_address} gave up: {error}"
            ) from None
        assert isinstance(future, PrefectDaskFuture)
        future.wrapped_future.release()  # if its worker died, Dask would read the file again, to have the answer again
        if store:
            store.fetch(job)
        report(shard.num_rows + shard.num_bad_rows, job.num_bytes)
        yield shard


def worth_a_retry(_task: object, _run: TaskRun, state: State) -> bool:
    """What the log or the set-up is to blame for fails again."""
    return not isinstance(state.data, ConfigError | DataError)


@task(
    task_run_name="{job.source.name}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_S,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
)
def read_file(job: Job, shared: str | None) -> Shard:
    """Runs on a worker: one log file to its shard, which is left at job.part or at the shared place."""
    worker, store = get_worker(), Store(shared) if shared else None
    if (
        done := store.find(job) if store else find(job)
    ):  # and the worker that made it died with the answer
        return done
    get_run_logger().info("%s reads %s", worker.address, job.source.name)
    return (
        store.ingest(job, _unseen, Path(worker.local_directory))
        if store
        else ingest_file(job, _unseen)
    )


def _unseen(num_rows: int, num_bytes: int) -> None:
    """How far a worker is within a file is not told."""
