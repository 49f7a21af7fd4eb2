"""Actors in threads of this process: the protocol of the servers without any other process.

The tests and the benchmark of the protocol use it. Results are not copied.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from training.servers.engine import Actor, ActorLost, Pending


class LocalEngine:
    """Runs each actor in threads of its own."""

    def __init__(self) -> None:
        self.actors: list[LocalActor] = []

    def start(self, name: str, cls: type, *args: Any, concurrency: int = 1) -> Actor:
        """Make cls(*args) an actor, in a thread of its own."""
        actor = LocalActor(name, ThreadPoolExecutor(concurrency), lambda: cls(*args))
        self.actors.append(actor)
        return actor

    def kill(self, actor: Actor) -> None:
        """Let all further calls of an actor fail; a method that runs is not interrupted."""
        assert isinstance(actor, LocalActor)
        actor.is_lost = True

    def wait_any(self, pending: Sequence[Pending], timeout_s: float) -> list[Pending]:
        """Wait until one of the calls has ended, at most `timeout_s`; return those that have."""
        futures = {call.future: call for call in pending if isinstance(call, LocalCall)}
        done, _ = wait(futures, timeout_s, FIRST_COMPLETED)
        return [call for future, call in futures.items() if future in done]

    def close(self) -> None:
        """End the threads of all actors; methods that run end first."""
        for actor in self.actors:
            actor.threads.shutdown(cancel_futures=True)


class LocalActor:
    """An object in threads of this process.

    Args:
        name: Its name in messages.
        threads: The threads in which its methods run.
        make: Makes the object.
    """

    def __init__(self, name: str, threads: ThreadPoolExecutor, make: Callable[[], Any]) -> None:
        self.name, self.threads = name, threads
        self.made = threads.submit(make)
        self.is_lost = False

    def call(self, method: str, *args: Any) -> "LocalCall":
        """Call a method."""
        return LocalCall(self.threads.submit(self._run, method, args))

    def _run(self, method: str, args: tuple[Any, ...]) -> Any:
        if self.is_lost:
            raise ActorLost(self.name, "it was killed")
        result = getattr(self.made.result(), method)(*args)
        if self.is_lost:
            raise ActorLost(self.name, "it was killed")
        return result


class LocalCall:
    """A call of a method of a LocalActor."""

    def __init__(self, future: "Future[Any]") -> None:
        self.future = future

    def result(self) -> Any:
        """Wait for the result."""
        return self.future.result()
