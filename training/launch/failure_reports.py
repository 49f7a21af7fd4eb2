"""Failure reports: files that ranks and nodes write into the shared folder when they fail.

The first node reads them and says why the training failed.
"""

import socket
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from common.config.loading import ConfigError
from common.files import DataError, read_json, write_json
from common.full_disk import FullDiskError, find_full_disk

LAST_LINES = 3  # of a traceback, in the message of the run
ARRIVAL_S = 3.0  # how long the reports of other nodes may take over a network file system

Kind = Literal["set-up", "data", "disk", "killed", "failed"]
# A cause has a smaller number than its consequences: a rank that lost a peer fails.
PRIORITIES: dict[Kind, int] = {"set-up": 0, "data": 0, "disk": 0, "killed": 1, "failed": 2}
USER_ERRORS: dict[Kind, type[ConfigError | DataError | FullDiskError]] = {
    "set-up": ConfigError,
    "data": DataError,
    "disk": FullDiskError,
}


class FailureReport(NamedTuple):
    """Why a rank or a node ended.

    Attributes:
        kind: `set-up` for a ConfigError, `data` for a DataError, `disk` for a full disk, `killed`
            for a signal, `failed` for any other error.
        source: The rank or node that ended, such as `rank 3`.
        host: Name of its machine.
        text: The message; for `failed` a traceback or the exit code.
    """

    kind: Kind
    source: str
    host: str
    text: str


def write_report(directory: Path, kind: Kind, source: str, text: str) -> None:
    """Write the report of a rank or node, unless it has one: the first report has the cause."""
    path = directory / f"{source.replace(' ', '_')}.json"
    if not path.exists():
        write_json(path, FailureReport(kind, source, socket.gethostname(), text)._asdict())


def report_error(directory: Path, source: str, error: BaseException) -> None:
    """Write the report of a rank or node that ends with this error."""
    full = find_full_disk(error)
    if isinstance(error, ConfigError):
        write_report(directory, "set-up", source, str(error))
    elif isinstance(error, DataError):
        write_report(directory, "data", source, str(error))
    elif full:
        write_report(directory, "disk", source, str(full))
    else:
        write_report(directory, "failed", source, "".join(traceback.format_exception(error)))


def read_reports(directory: Path, *, of_other_nodes: bool) -> list[FailureReport]:
    """Read all reports, the most likely cause first.

    They are sorted by kind, then by age. The ages are comparable, because one file system gives the
    times of all nodes.

    Args:
        directory: The folder of the reports.
        of_other_nodes: Whether other nodes may have written reports, which take time to arrive.
    """
    if of_other_nodes:
        time.sleep(ARRIVAL_S)
    paths = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    reports = list(filter(None, map(_read_report, paths)))
    return sorted(reports, key=lambda report: PRIORITIES[report.kind])


def _read_report(path: Path) -> FailureReport | None:
    """Return a report; None if it is damaged: the run has failed with or without it."""
    try:
        report = FailureReport(**read_json(path))
    except (DataError, TypeError):
        return None
    is_text = all(isinstance(value, str) for value in report)
    return report if is_text and report.kind in PRIORITIES else None


def explain(reports: Sequence[FailureReport], num_ranks: int) -> str:
    """Return the message of a failed run.

    It names the rank or node that failed first, with its last lines. If that one may have failed
    because of another, it also names the ranks without a report: they hang, or their node is gone.

    Args:
        reports: What `read_reports` returned.
        num_ranks: Ranks of the run.
    """
    if not reports:
        return f"training on {num_ranks} ranks failed, and no rank reported why"
    first = reports[0]
    lines = first.text.strip().splitlines()[-LAST_LINES:]
    reason = f" {lines[0]}" if len(lines) == 1 else "\n" + "\n".join(lines)
    message = f"training on {num_ranks} ranks failed: {first.source} on {first.host}:{reason}"
    with_report = {report.source for report in reports}
    silent = [f"rank {rank}" for rank in range(num_ranks) if f"rank {rank}" not in with_report]
    if silent and first.kind == "failed":
        message += f"\nno report of {', '.join(silent)}: hung, or gone with its node"
    return message
