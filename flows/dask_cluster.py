"""The Dask cluster at `dask.address`: its check, flows whose tasks its workers run, their results.

It is imported only where `dask.address` is not null.
"""

from concurrent.futures import CancelledError
from typing import Any

import httpx
from prefect import Flow
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL, temporary_settings

from common.config.loading import ConfigError
from common.config.params import Dask
from common.files import DataError
from common.logs import get_logger
from common.masking import mask_passwords
from common.retry import is_worth_retrying
from flows.prefect_server import ensure_server

try:
    from distributed import Client, KilledWorker
    from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture
except ModuleNotFoundError as error:
    package = str(error.name).partition(".")[0]
    raise ConfigError(
        f"dask.address is given, but {package} is not installed: pip install 'clickmill[dask]', "
        "here and on the workers, or set dask.address to null"
    ) from None

ANSWER_WITHIN_S = 10.0
# The options of each task that a worker runs.
TASK_OPTIONS: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": 2,
    "retry_condition_fn": lambda _task, _run, state: is_worth_retrying(state.data),
    "cache_policy": NO_CACHE,
}


def run_on_cluster(options: Dask, flow: Flow[[], None]) -> None:
    """Run a flow whose tasks are run by the workers of the cluster.

    Raises:
        ConnectionError: The scheduler, a worker or the shared storage cannot be used; it says why.
    """
    log = get_logger(flow.name)
    address = str(options.address)
    with connect(options) as cluster:
        server = ensure_server()
        faults = cluster.run(examine_worker, server, on_error="return")
    for worker, fault in faults.items():
        if fault:
            raise ConnectionError(
                f"dask.address: the worker at {worker} cannot do the work: {fault}"
            )
    log.info(f"{len(faults)} workers at {mask_passwords(address)}")
    with temporary_settings({PREFECT_API_URL: server}):  # the workers report to the same server
        flow.with_options(task_runner=DaskTaskRunner(address=address))()  # type: ignore[arg-type]


def connect(options: Dask) -> Client:
    """Connect to the scheduler at `dask.address`.

    Raises:
        ConnectionError: None answers.
    """
    address = str(options.address)
    try:
        return Client(address, timeout=ANSWER_WITHIN_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"dask.address: no Dask scheduler answers at {mask_passwords(address)} "
            f"({mask_passwords(str(error))}); start one (dask scheduler), or correct the address"
        ) from None


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


def result_of(future: "PrefectDaskFuture[Any]", title: str, options: Dask) -> Any:
    """Wait for the result of a task.

    Args:
        future: The task.
        title: What the task does, for the error.
        options: The section `dask` of params.yaml.

    Raises:
        DataError: Several workers died while they ran the task.
        ConnectionError: The cluster gave up.
    """
    try:
        result = future.result()
    except KilledWorker as error:
        raise DataError(f"{title}: {error}") from None
    except CancelledError as error:
        raise ConnectionError(
            f"dask.address: the cluster at {mask_passwords(str(options.address))} gave up: {error}"
        ) from None
    # Otherwise Dask would do the work again if the worker died, to have the result again.
    future.wrapped_future.release()
    return result
