"""Objects for actors of Ray, and `python -m tests.factories.ray_actors`: a driver to be killed."""

import os
import signal
import sys
import threading
import time
from typing import Any

import numpy as np

from flows.cli.signals import exit_on_sigterm
from training.servers.engine import Actor


class Box:
    """An object whose methods do what a test needs.

    Args:
        fault: The message of an error that the constructor raises, if it is not empty.
    """

    def __init__(self, fault: str = "") -> None:
        if fault:
            raise LookupError(fault)
        self.kept: list[Any] = []
        self.meeting = threading.Barrier(2, timeout=20)

    def pid(self) -> int:
        return os.getpid()

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def has_imported(self, module: str) -> bool:
        return module in sys.modules

    def keep(self, value: Any, wait_s: float = 0.0) -> list[Any]:
        time.sleep(wait_s)
        self.kept.append(value)
        return self.kept

    def meet(self) -> None:
        """Wait for another call of this method that runs at the same time."""
        self.meeting.wait()

    def is_writeable(self, array: np.ndarray) -> bool:
        return array.flags.writeable

    def echo(self, value: Any) -> Any:
        return value

    def fail(self) -> None:
        raise LookupError("not in the box")

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def sleep(self, wait_s: float) -> None:
        time.sleep(wait_s)

    def spin(self) -> None:
        """Keep the interpreter busy for ever."""
        while True:
            pass

    def ask(self, other: Actor, method: str, *args: Any) -> Any:
        """Call another actor and wait for its answer."""
        return other.call(method, *args).result()


def drive(address: str | None) -> None:
    """Start three actors, each busy in another way, and wait to be ended."""
    from training.servers.ray_engine import RayEngine

    exit_on_sigterm()
    # A process that was started with `&`, as these tests may have been, ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    engine = RayEngine(address, actors=3, threads=1)
    first, second, third = [engine.start(f"box {k}", Box) for k in range(3)]
    pids = [box.call("pid").result() for box in (first, second, third)]
    calls = [first.call("spin"), second.call("ask", third, "sleep", 1000.0)]
    print("READY", *pids, flush=True)
    calls[1].result()


if __name__ == "__main__":
    drive(sys.argv[1] if len(sys.argv) > 1 else None)
