"""The trials of `clickmill tune --runner dask`, run by the workers of a Dask cluster.

It is imported only where the cluster is asked for. The workers see this folder under the same path.
"""

from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Self

from distributed import Future, KilledWorker, as_completed
from distributed.utils import CancelledError

from common.config.loading import ConfigError
from common.config.params import Dask
from common.logs import get_logger
from common.masking import mask_passwords
from flows.dask_cluster import connect
from training.tune.outcome import Outcome
from training.tune.trial import Task

log = get_logger("tune")

_one_at_a_time = Lock()  # a worker may have several threads, and a trial sets those of torch


class DaskPool:
    """The workers of a cluster, each of which runs one trial at a time.

    Dask gives the trial of a worker that died to another one; after several deaths it has failed.

    Args:
        options: The section `dask` of params.yaml.
        window: The largest number of trials that can run beside each other.

    Raises:
        ConfigError: There is no cluster, or it does not share this folder.
    """

    def __init__(self, options: Dask, window: int) -> None:
        if options.address is None:
            raise ConfigError(
                "--runner dask: dask.address in params.yaml is null; set it to the address of the"
                " scheduler"
            )
        if options.shared_storage is not None:
            raise ConfigError(
                f"--runner dask: dask.shared_storage is {mask_passwords(options.shared_storage)},"
                " but trials read this folder; mount it on the workers under the same path and set"
                " dask.shared_storage to null"
            )
        self.options, self.window = options, window
        self._keys: dict[Future[Any], tuple[int, Task]] = {}

    def __enter__(self) -> Self:
        self._client = connect(self.options)
        self._num_workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
        log.info(f"{self._num_workers} workers at {mask_passwords(str(self.options.address))}")
        self._finished = as_completed(loop=self._client.loop)
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(Exception):  # the cluster may be gone
            self._client.cancel(list(self._keys), force=True)
        self._client.close()

    def has_room(self) -> bool:
        """Return whether a worker is idle."""
        return len(self._keys) < min(self._num_workers, self.window)

    def submit(self, key: int, task: Task) -> None:
        """Give a task to the cluster."""
        absolute = Task(task.title, task.params, task.root.resolve(), task.limits)
        future = self._client.submit(run_on_worker, absolute, pure=False)
        self._keys[future] = key, task
        self._finished.add(future)

    def next_finished(self) -> tuple[int, Outcome]:
        """Wait until a task has ended, and return its key and its outcome.

        Raises:
            DataError: A worker found that the features are damaged, or has no such folder.
            ConnectionError: The cluster gave up.
        """
        future = next(self._finished)
        key, task = self._keys.pop(future)
        try:
            outcome = future.result()
        except KilledWorker as error:
            return key, Outcome(result=None, error=f"its workers died: {error}")
        except CancelledError as error:
            address = mask_passwords(str(self.options.address))
            raise ConnectionError(
                f"{task.title}: the cluster at {address} gave up: {error}"
            ) from None
        assert isinstance(outcome, Outcome)
        return key, outcome


def run_on_worker(task: Task) -> Outcome:
    """Run a trial. Called on a worker."""
    from training.tune.trial import run_trial

    _check_folder(task.root)
    with _one_at_a_time:
        return run_trial(task)


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise ConfigError(
            f"this worker has no folder {root}; mount the project's folder under the same path"
        )
