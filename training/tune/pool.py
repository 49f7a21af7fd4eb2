"""Who runs the trials: worker processes of this machine, or whatever has the same methods."""

from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol, Self

from common.logs import get_logger
from training.tune.outcome import Outcome
from training.tune.processes import start_process
from training.tune.trial import Task
from training.tune.worker import work

log = get_logger("tune")

MAX_ATTEMPTS = 2  # a task whose worker died is tried once more


class Pool(Protocol):
    """Runs tasks beside each other."""

    def has_room(self) -> bool:
        """Return whether another task would start at once."""
        ...

    def submit(self, key: int, task: Task) -> None:
        """Start a task.

        Args:
            key: The caller's number of the task.
            task: The task.
        """
        ...

    def next_finished(self) -> tuple[int, Outcome]:
        """Wait until a task has ended, and return its key and its outcome."""
        ...


@dataclass
class Worker:
    """A worker process, and its task if it has one.

    Attributes:
        process: The process.
        key: The key of its task; None if it is idle.
        task: Its task.
    """

    process: BaseProcess
    key: int | None = None
    task: Task | None = None


class LocalPool:
    """Worker processes on this machine. They are started when there is a task for them.

    Args:
        num_workers: The largest number of workers.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._workers: dict[Connection, Worker] = {}
        self._num_deaths: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers.values():
            worker.process.kill()  # SIGTERM takes seconds, because Lightning handles it
        for pipe, worker in self._workers.items():
            worker.process.join()
            pipe.close()

    def has_room(self) -> bool:
        """Return whether a worker is idle or can be started."""
        num_busy = sum(worker.key is not None for worker in self._workers.values())
        return num_busy < self.num_workers

    def submit(self, key: int, task: Task) -> None:
        """Give a task to an idle worker, or to a new one."""
        idle = [pipe for pipe, worker in self._workers.items() if worker.key is None]
        pipe = idle[0] if idle else self._start_worker()
        self._workers[pipe].key, self._workers[pipe].task = key, task
        with suppress(OSError):  # it has died, which `next_finished` sees as well
            pipe.send(task)

    def next_finished(self) -> tuple[int, Outcome]:
        """Wait until a task has ended, and return its key and its outcome.

        Raises:
            DataError: A worker found that the features are damaged.
        """
        while True:
            for pipe in wait(list(self._workers)):
                assert isinstance(pipe, Connection)
                if finished := self._receive(pipe):
                    return finished

    def _receive(self, pipe: Connection) -> tuple[int, Outcome] | None:
        worker = self._workers[pipe]
        try:
            answer = pipe.recv()
        except (EOFError, OSError):
            return self._replace_dead(pipe)
        if isinstance(answer, Exception):
            raise answer
        assert worker.key is not None
        assert isinstance(answer, Outcome)
        key, worker.key, worker.task = worker.key, None, None
        self._num_deaths.pop(key, None)  # another task may get the same key
        return key, answer

    def _replace_dead(self, pipe: Connection) -> tuple[int, Outcome] | None:
        """Give the task of a worker that died to a new one; the second time the task has failed."""
        worker = self._workers.pop(pipe)
        pipe.close()
        worker.process.join()
        code, key, task = worker.process.exitcode, worker.key, worker.task
        if key is None or task is None:
            return None
        self._num_deaths[key] = self._num_deaths.get(key, 0) + 1
        if self._num_deaths[key] >= MAX_ATTEMPTS:
            del self._num_deaths[key]
            error = f"its worker died {MAX_ATTEMPTS} times ({_exit(code)})"
            return key, Outcome(result=None, error=error)
        log.warning(f"{task.title}: its worker died ({_exit(code)}); the trial runs again")
        self.submit(key, task)
        return None

    def _start_worker(self) -> Connection:
        process, pipe = start_process(work)
        self._workers[pipe] = Worker(process)
        return pipe


def _exit(code: int | None) -> str:
    """Return what ended a process: a signal, such as 9 for lack of memory, or an exit code."""
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
