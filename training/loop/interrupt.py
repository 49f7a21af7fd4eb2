"""Ctrl-C and SIGTERM during a training."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from common.logs import get_logger
from training.loop.checkpoint import LAST, Checkpoints

log = get_logger("train")


@contextmanager
def told_when_stopped(checkpoints: Checkpoints) -> Iterator[None]:
    """Say what the next run begins with. Lightning makes sys.exit(1) of a Ctrl-C; here it is one again."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        log.info(f"stopped; {_outlook(checkpoints)}")
        if (
            isinstance(stop, SystemExit)
            and stop.code == 1
            and isinstance(stop.__context__, KeyboardInterrupt)
        ):
            raise KeyboardInterrupt from None
        raise


def _outlook(checkpoints: Checkpoints) -> str:
    path = checkpoints.directory / LAST
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return "there is no checkpoint yet, so the next run begins anew"
    return f"the next run goes on from the checkpoint of {age_s:,.0f} s ago, {path}"
