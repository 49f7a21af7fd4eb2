"""Actors in threads of this process: the protocol of the servers without any other process.

The tests and the benchmark of the protocol use it. Results are not copied.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from training.servers.engine import Actor, ActorLost, Pending

CALLER = threading.local()  # its `name` is that of the actor whose thread this is


class LocalEngine:
    """Runs each actor in threads of its own."""

    def __init__(self) -> None:
        self.actors: list[LocalActor] = []

    def start(self, name: str, cls: type, *args: Any, concurrency: int = 1) -> Actor:
        """Make cls(*args) an actor, in a thread of its own."""
        actor = LocalActor(self, name, ThreadPoolExecutor(concurrency), lambda: cls(*args))
        self.actors.append(actor)
        return actor

    def call(self, caller: str, actor: "LocalActor", method: str, args: tuple[Any, ...]) -> Any:
        """Run a method in a thread of its actor; tests replace this to let actors end.

        Args:
            caller: The name of the actor that calls; "" for the driver.
            actor: The actor.
            method: The method.
            args: Its arguments.
        """
        if actor.is_lost:
            raise ActorLost(actor.name, "it was killed")
        return getattr(actor.made.result(), method)(*args)

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
        """End the threads of all actors; what they wait for fails."""
        for actor in self.actors:
            actor.is_lost = True
        for actor in self.actors:
            actor.threads.shutdown(cancel_futures=True)


class LocalActor:
    """An object in threads of this process.

    Args:
        engine: The engine that has started it.
        name: Its name in messages.
        threads: The threads in which its methods run.
        make: Makes the object.
    """

    def __init__(
        self,
        engine: LocalEngine,
        name: str,
        threads: ThreadPoolExecutor,
        make: Callable[[], Any],
    ) -> None:
        self.engine, self.name, self.threads = engine, name, threads
        self.made = threads.submit(make)
        self.is_lost = False

    def call(self, method: str, *args: Any) -> "LocalCall":
        """Call a method."""
        caller = getattr(CALLER, "name", "")
        return LocalCall(self.threads.submit(self._run, caller, method, args))

    def _run(self, caller: str, method: str, args: tuple[Any, ...]) -> Any:
        CALLER.name = self.name
        return self.engine.call(caller, self, method, args)


class LocalCall:
    """A call of a method of a LocalActor."""

    def __init__(self, future: "Future[Any]") -> None:
        self.future = future

    def result(self) -> Any:
        """Wait for the result."""
        return self.future.result()
