"""One run of a kind at a time in one repository, whoever starts it: the server's schedule, a deployment, a person.

The locks are the kernel's (flock): whatever ends the process that has one gives it back, so none is ever stale. A limit of Prefect's on
a pool or a deployment goes on counting the run of a machine that lost its power, and every run after it would wait for that one.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

LOCKS = Path(".dvc/tmp")  # where DVC has its own
NIGHT, REGISTRY, TRAINING = LOCKS / "night.lock", LOCKS / "registry.lock", LOCKS / "train-dlrm.lock"
LOOK_AGAIN_S = 1.0


class LockedError(RuntimeError):
    """Another process has the lock. The message says which."""


@contextmanager
def only_night(root: Path) -> Iterator[None]:
    """Hold the lock of root's nights. Raises LockedError where another process does."""
    with _open(root / NIGHT) as file:
        if not _taken(file):
            raise LockedError(
                f"another night runs in {root.resolve()} ({_holder(file)}); wait for it, or stop it"
            )
        yield


@contextmanager
def only_registry(root: Path) -> Iterator[None]:
    """Hold the lock of root's tags and of the link to what serves, for seconds, once it is free: a rollback does not wait for a night."""
    with _open(root / REGISTRY) as file:
        _wait(file)
        yield


@contextmanager
def only_training(root: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of train-dlrm in root, once it is free: somebody asked for this run. log is told what it waits for."""
    with _open(root / TRAINING) as file:
        if not _taken(file):
            log(
                f"another run is at work in {root.resolve()} ({_holder(file)}); this one waits for it to end"
            )
            _wait(file)
        yield


def _open(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a+", encoding="utf-8")


def _taken(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    file.truncate(0)
    file.write(
        f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )
    file.flush()
    return True


def _wait(file: TextIO) -> None:
    while not _taken(file):
        time.sleep(LOOK_AGAIN_S)


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip()
