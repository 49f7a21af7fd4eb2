"""Child processes of a search, which are started without a copy of this process's memory."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from common.subprocess_tree import die_with_parent


def start_process(target: Callable[..., None], *args: Any) -> tuple[BaseProcess, Connection]:
    """Start a process that calls `target(pipe, *args)`, and return it with our end of the pipe.

    The process dies with this one. It does not receive Ctrl-C, which is for this process to handle:
    a blocked signal stays blocked in a child.
    """
    # OpenMP reads it when the child imports torch. By default a thread that waits uses its core
    # fully: beside other trials, two threads were measured to be 8 to 15 times as slow as one.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    context = multiprocessing.get_context("spawn")
    # The first process that is started also starts the resource tracker, which ends with SIGINT
    # unblocked.
    resource_tracker.ensure_running()
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(os.getpid(), target, theirs, *args), daemon=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()
    return process, ours


def _run(parent: int, target: Callable[..., None], pipe: Connection, *args: Any) -> None:
    die_with_parent(parent)
    target(pipe, *args)
