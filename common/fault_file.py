"""How a stage tells the process that started it why it failed: in a file, not by what it prints.

What a stage prints also contains values of the log, which could look like a reason or an exit code.
"""

import os
from pathlib import Path
from typing import NamedTuple

from common.files import DataError, read_json, write_json

# Environment variable: the file that a stage which fails writes its reason to.
FAULT_FILE = "CLICKMILL_FAULT_FILE"


class Fault(NamedTuple):
    """Why a stage failed: the message of its error, and its exit code."""

    message: str
    code: int


def report_fault(message: str, code: int) -> None:
    """Write the fault to the file that the parent process has named, if it has named one."""
    if path := os.environ.get(FAULT_FILE):
        write_json(Path(path), Fault(message, code)._asdict())


def read_fault(path: Path) -> Fault | None:
    """Return the fault that a child process reported; None if it was killed or broke down."""
    try:
        return Fault(**read_json(path))
    except (DataError, TypeError):
        return None
