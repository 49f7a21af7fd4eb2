"""One rank, as torchrun starts it.

Usage: python -m training.worker ROOT RENDEZVOUS
ROOT is the project's root, RENDEZVOUS a `launcher.Rendezvous` as JSON.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from common.logs import configure_logging
from common.startup import search_garbage_less_often
from common.subprocess_tree import AGENT_PID, die_with_parent


def main(root: Path, rendezvous_json: str) -> NoReturn:
    """Train as one rank, and exit with 0. Writes a failure report and exits with 1 if that fails.

    The process leaves without Python's shutdown, which would wait for the other ranks after an
    error. A thread of a library that uses Python during the shutdown can also abort the process.
    """
    die_with_parent(int(os.environ[AGENT_PID]))  # before the imports below, which take seconds
    search_garbage_less_often()
    configure_logging()
    from training.adapters.unused_imports import delay_unused_imports

    delay_unused_imports()
    from torch import distributed

    from training.launch.failure_reports import report_error
    from training.launch.launcher import Rendezvous
    from training.stage import fit

    rendezvous = Rendezvous.model_validate_json(rendezvous_json)
    rendezvous.mark_started(root)
    try:
        fit(rendezvous.params, root, rendezvous.accelerator, rendezvous.checkpoints(root))
        distributed.destroy_process_group()
    except Exception as error:
        source = f"rank {os.environ['RANK']}"
        try:
            report_error(rendezvous.reports(root), source, error)
        except OSError as second:  # the disk may be full, and that of the output too
            with suppress(OSError):
                print(f"{source}: {error}\n{source}: no report: {second}")
        _exit_at_once(1)
    _exit_at_once(0)


def _exit_at_once(code: int) -> NoReturn:
    """Print what is still in buffers, if that is possible, and end this process."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also if the disk of the output is full
        os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
