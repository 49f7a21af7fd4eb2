"""The agent of a node: torchrun, which also reports ranks that died without a report of their own.

Usage: python -m training.launch.torchrun_agent REPORTS TORCHRUN_ARGUMENTS...
REPORTS is the folder of the failure reports.
"""

import logging
import os
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import parse_args, run

from common.subprocess_tree import AGENT_PID
from training.launch.failure_reports import write_report

SHUTDOWN_TIMEOUT_S = 5  # between SIGTERM and SIGKILL, for the ranks that torchrun stops


def main(reports: Path, arguments: list[str]) -> None:
    """Run torchrun. Exits with 1 if a rank failed, the nodes did not meet, or a signal stops it."""
    logging.disable()  # torchrun would log what the reports contain
    os.environ[AGENT_PID] = str(os.getpid())
    try:
        run(parse_args([f"--shutdown-timeout={SHUTDOWN_TIMEOUT_S}", *arguments]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        report_deaths(reports, error.failures)
        sys.exit(1)
    except RendezvousError as error:
        node = f"node {os.getpid()}"
        write_report(reports, "failed", node, f"the nodes did not meet: {error}")
        sys.exit(1)
    except (KeyboardInterrupt, SignalException):  # Ctrl-C, or a cancelled flow
        sys.exit(1)


def report_deaths(reports: Path, failures: dict[int, ProcessFailure]) -> None:
    """Report ranks that a signal killed, and ranks that ended before they could write a report.

    Ranks that torchrun itself stopped after the first failure are left out.

    Args:
        reports: The folder of the failure reports.
        failures: How each rank ended.
    """
    first_s = min(failure.timestamp for failure in failures.values())
    for rank, failure in failures.items():
        stopped_by_torchrun = (
            failure.timestamp - first_s >= SHUTDOWN_TIMEOUT_S or failure.exitcode == -signal.SIGTERM
        )
        if stopped_by_torchrun:
            continue
        if failure.exitcode >= 0:
            write_report(reports, "failed", f"rank {rank}", f"exited with {failure.exitcode}")
            continue
        reason = f"killed by {failure.signal_name()}"
        if failure.exitcode == -signal.SIGKILL:
            reason += " (by the kernel, if memory ran out)"
        write_report(reports, "killed", f"rank {rank}", reason)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
