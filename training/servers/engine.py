"""The interface of an engine: it runs objects in other processes, and calls their methods.

Nothing here knows the engine that is used; `ray_engine.py` is one.
"""

from collections.abc import Sequence
from typing import Any, Protocol


class ActorLost(Exception):  # noqa: N818
    """The process of an actor has ended, or its machine is gone.

    If it is raised inside a method of another actor, the caller of that method receives it as it
    is: it names the actor that was lost first.

    Args:
        actor: The name of the actor.
        reason: What is known of its end.

    Attributes:
        actor: The name of the actor.
    """

    def __init__(self, actor: str, reason: str) -> None:
        super().__init__(actor, reason)
        self.actor = actor

    def __str__(self) -> str:
        return "{} was lost: {}".format(*self.args)


class Pending(Protocol):
    """A call that has been sent."""

    def result(self) -> Any:
        """Wait for the method and return its result.

        NumPy arrays in it are read-only, since they can share memory with the engine. Tensors of
        torch are copied, so large ones are better sent as arrays.

        Raises:
            ActorLost: The actor was lost before it had answered.
            Exception: Whatever the method, or the constructor of the actor, raised.
        """
        ...


class Actor(Protocol):
    """An object in another process. It can be given to actors, which can call it then.

    Attributes:
        name: The name that it was started with.
    """

    name: str

    def call(self, method: str, *args: Any) -> Pending:
        """Send a call of a method and return at once.

        Args:
            method: The name of the method.
            args: Its arguments, which are copied. The method receives read-only NumPy arrays.
        """
        ...


class Engine(Protocol):
    """Starts actors, ends them, and waits for their answers."""

    def start(self, name: str, cls: type, *args: Any, concurrency: int = 1) -> Actor:
        """Run `cls(*args)` in a process of its own, and return at once.

        Calls of its methods run one at a time, in the order in which a caller sends them, unless
        `concurrency` is more than 1: then that many run at the same time, each in a thread, and
        the order is not kept.

        Args:
            name: The name of the actor in messages.
            cls: A class of a module that can be imported in the process.
            args: Its arguments.
            concurrency: The number of methods that may run at the same time.
        """
        ...

    def kill(self, actor: Actor) -> None:
        """End an actor's process, whatever it does, and free its name and its place.

        Nothing else happens if the process has ended.
        """
        ...

    def wait_any(self, pending: Sequence[Pending], timeout_s: float) -> list[Pending]:
        """Wait until a call is done or has failed, and return all such calls.

        Args:
            pending: The calls, of which none may occur twice.
            timeout_s: The longest wait, in seconds; after it the list is empty.
        """
        ...

    def close(self) -> None:
        """End all actors that this engine has started, and what it has started for itself."""
        ...
