"""Trainings with parameter servers whose actors are threads of this process."""

import shutil
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.bundle_layout import HISTORY, MODEL, WEIGHTS
from common.config.params import Params
from tests.factories.support import wait_for
from training.loop.checkpoint import checkpoints_of
from training.servers.engine import ActorLost
from training.servers.local_engine import LocalActor, LocalEngine
from training.stage import fit_on_servers


def with_train(params: Params, **changes: Any) -> Params:
    """Return the parameters with changes in the section train."""
    values = params.model_dump(by_alias=True)
    values["train"] |= changes
    return Params.model_validate(values)


def with_servers(params: Params, servers: int, workers: int, **options: int) -> Params:
    """Return the parameters with parameter servers."""
    values = params.train.servers.model_dump() | {"servers": servers, "workers": workers} | options
    return with_train(params, parallel="servers", servers=values)


def train_on_threads(params: Params, root: Path, engine: LocalEngine | None = None) -> None:
    """Train with parameter servers, and write the bundle."""
    checkpoints = checkpoints_of(params, "cpu", root)
    with closing(engine or LocalEngine()) as running:
        fit_on_servers(params, root, checkpoints, running)
    checkpoints.remove()


def files_of(root: Path, names: Sequence[str] = (WEIGHTS, HISTORY)) -> dict[str, bytes]:
    """Return the bytes of files of the bundle, and remove it."""
    contents = {name: (root / MODEL / name).read_bytes() for name in names}
    shutil.rmtree(root / MODEL)
    return contents


@dataclass
class Fault:
    """The end of an actor at a call.

    Attributes:
        caller: The beginning of the name of the actor that calls.
        target: The beginning of the name of the actor that is called.
        method: The method.
        number: The number of the call, from 1, among those of the same caller, target and method.
        lost: The actor that ends: `caller` or `target`.
        after: Whether the method runs before the actor ends, and only its answer is lost.
        hangs: Whether the actor hangs until the engine ends it.
    """

    caller: str
    target: str
    method: str
    number: int
    lost: str
    after: bool
    hangs: bool = False

    def meets(self, caller: str, target: str, method: str) -> bool:
        """Return whether the actor ends at this call; the calls are counted."""
        is_meant = (
            caller.startswith(self.caller)
            and target.startswith(self.target)
            and method == self.method
        )
        self.number -= is_meant
        return is_meant and self.number == 0


class FaultyEngine(LocalEngine):
    """Lets actors end at certain calls.

    Attributes:
        met: The faults that have happened.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__()
        self.faults, self.met = list(faults), 0
        self.lock = threading.Lock()
        self.lost: set[str] = set()

    def call(self, caller: str, actor: LocalActor, method: str, args: tuple[Any, ...]) -> Any:
        """Run a method, unless one of the two actors has ended or ends."""
        with self.lock:
            fault = next((f for f in self.faults if f.meets(caller, actor.name, method)), None)
            self.met += fault is not None
        if fault is None:
            return super().call(caller, actor, method, args)
        result = super().call(caller, actor, method, args) if fault.after else None
        if fault.hangs:
            name = actor.name if fault.lost == "target" else caller
            hanging = next(one for one in self.actors if one.name == name)
            wait_for(lambda: hanging.is_lost)
            raise ActorLost(name, "it has been ended")
        if fault.lost == "target":
            actor.is_lost = True
            raise ActorLost(actor.name, "a fault of the test")
        if fault.lost == "caller":
            raise ActorLost(caller, "a fault of the test")
        return result
