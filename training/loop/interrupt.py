"""Ctrl-C and SIGTERM during a training."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from common.logs import get_logger
from training.loop.checkpoint import LAST, Checkpoints

log = get_logger("train")


@contextmanager
def report_on_interrupt(checkpoints: Checkpoints) -> Iterator[None]:
    """Log where the next run will resume, when a signal ends this one.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed. Lightning exits with status 1 instead, which would
            look like a failed training.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        log.info(f"stopped; {_next_run(checkpoints)}")
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def _next_run(checkpoints: Checkpoints) -> str:
    path = checkpoints.directory / LAST
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        if checkpoints.member is not None:
            name = f"model {checkpoints.member + 1} of the ensemble"
            return f"there is no checkpoint of {name} yet, so the next run starts with that one"
        return "there is no checkpoint yet, so the next run starts from scratch"
    # The age is negative if the clock was set back since.
    age = f" of {age_s:,.0f} s ago" if age_s >= 0 else ""
    return f"the next run resumes from the checkpoint{age}, {path}"
