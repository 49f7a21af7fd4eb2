"""One night at a time, in one repository: by schedule, by hand and backfilled alike."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

LOCK = Path(".dvc/tmp/night.lock")  # where DVC has its own


class NightRunsError(RuntimeError):
    """Another process has the lock. The message says which."""


@contextmanager
def only_night(root: Path) -> Iterator[None]:
    """Hold the lock of root. Raises NightRunsError where another process does.

    It is the kernel's (flock): whatever ends the process that has it gives it back, so none is ever stale.
    """
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise NightRunsError(f"another night runs in {root.resolve()} ({file.read().strip()}); wait for it, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
        file.flush()
        yield
