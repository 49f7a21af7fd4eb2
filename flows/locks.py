"""Locks: only one run of each kind works in a repository at a time.

The operating system holds the locks (flock, through `filelock`): the end of a process releases
them, whatever ended it, so no lock is ever stale. A concurrency limit of Prefect's would still
count the run of a machine that lost its power, and every later run would wait for it.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

LOCKS = Path(".dvc/tmp")  # where DVC has its own
NIGHTLY, REGISTRY, TRAINING = (
    LOCKS / name for name in ("night.lock", "registry.lock", "train-dlrm.lock")
)
POLL_S = 1.0


class LockedError(RuntimeError):
    """Another process holds the lock. The message says which."""


@contextmanager
def nightly_lock(root: Path) -> Iterator[None]:
    """Hold the lock of root's nightly runs.

    Raises:
        LockedError: Another process holds it.
    """
    lock = _lock(root / NIGHTLY)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise LockedError(
            f"another nightly run is active in {root.resolve()} ({_read_holder(root / NIGHTLY)}); "
            "wait for it to end, or stop it"
        ) from None
    with _held(lock):
        yield


@contextmanager
def registry_lock(root: Path) -> Iterator[None]:
    """Wait for the lock of root's model registry (git tags and the production link), then hold it.

    It is held for seconds only, so a rollback does not wait for a nightly run.
    """
    lock = _lock(root / REGISTRY)
    lock.acquire(poll_interval=POLL_S)
    with _held(lock):
        yield


@contextmanager
def training_lock(root: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Wait for the lock of the flow train-dlrm in root, with a line to `log`, then hold it."""
    lock = _lock(root / TRAINING)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = _read_holder(root / TRAINING)
        log(f"another run is active in {root.resolve()} ({holder}); this run waits for its end")
        lock.acquire(poll_interval=POLL_S)
    with _held(lock):
        yield


def _lock(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, thread_local=False)


@contextmanager
def _held(lock: FileLock) -> Iterator[None]:
    """Say in a file beside the lock who holds it, and release it at the end."""
    try:
        _holder_file(Path(lock.lock_file)).write_text(
            f"process {os.getpid()} on {socket.gethostname()}, "
            f"since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            encoding="utf-8",
        )
        yield
    finally:
        lock.release()


def _holder_file(lock_file: Path) -> Path:
    return lock_file.with_suffix(".holder")


def _read_holder(lock_file: Path) -> str:
    try:
        return _holder_file(lock_file).read_text(encoding="utf-8")
    except FileNotFoundError:
        return "which has only just begun"
