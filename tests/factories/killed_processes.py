"""A process that kills itself at a chosen moment of a training run."""

import functools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import torch

from training.loop.lightning_module import TrainDLRM

# The function that is called at each moment: its owner and its name.
MOMENTS: dict[str, tuple[Any, str]] = {
    "step": (TrainDLRM, "training_step"),
    "validation": (TrainDLRM, "validation_step"),
    "half written": (torch, "save"),
    "fsync": (os, "fsync"),
    "rename": (Path, "replace"),
    "removal": (shutil, "rmtree"),
}


def die_at(moment: str, count: int) -> None:
    """Make this process kill itself when a moment of MOMENTS comes for the count-th time.

    With the moment `never` it does not kill itself.
    """
    if moment != "never":
        owner, name = MOMENTS[moment]
        setattr(
            owner,
            name,
            _dying(getattr(owner, name), count, _write_half if moment == "half written" else None),
        )


def _dying(function: Any, count: int, last_act: Any = None) -> Any:
    """Return the function, whose count-th call first does `last_act` and then kills the process."""
    calls = 0

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            if last_act:
                last_act(function, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return call


def _write_half(save: Any, content: Any, path: Path) -> None:
    """Save half of a file, as if the process had been killed while it was writing."""
    save(content, path)
    os.truncate(path, path.stat().st_size // 2)
