"""`python -m training.ranks.agent NOTES ARGUMENTS…`: torchrun, which moreover notes down how ranks died that could not say so."""

import logging
import os
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import parse_args, run

from common.subprocess_tree import AGENT_PID
from training.distributed.failure_reports import leave_note

STOP_WITHIN_S = 5  # a rank that got SIGTERM, before SIGKILL


def main(directory: Path, arguments: list[str]) -> None:
    logging.disable()  # torchrun's own account of what is noted down
    os.environ[AGENT_PID] = str(os.getpid())
    try:
        run(parse_args([f"--shutdown-timeout={STOP_WITHIN_S}", *arguments]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        note_deaths(directory, error)
        sys.exit(1)
    except RendezvousError as error:
        leave_note(directory, "failed", f"node {os.getpid()}", f"the nodes did not meet: {error}")
        sys.exit(1)


def note_deaths(directory: Path, error: ChildFailedError) -> None:
    """Those that a signal ended, but for torchrun's own signals to the rest, and those that ended before they could say a word."""
    first_s = min(failure.timestamp for failure in error.failures.values())
    for rank, failure in error.failures.items():
        if failure.timestamp - first_s >= STOP_WITHIN_S or failure.exitcode == -signal.SIGTERM:
            continue
        if failure.exitcode < 0:
            why = (
                " (by the kernel, if memory ran out)" if failure.exitcode == -signal.SIGKILL else ""
            )
            leave_note(
                directory, "killed", f"rank {rank}", f"killed by {failure.signal_name()}{why}"
            )
        else:
            leave_note(directory, "failed", f"rank {rank}", f"exited with {failure.exitcode}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
