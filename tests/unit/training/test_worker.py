"""The process of one rank."""

import subprocess
import sys
from pathlib import Path

from tests.factories.support import ROOT

LEAVE = "from training.worker import _exit_at_once; print('the last line'); _exit_at_once(3)"


def test_a_rank_leaves_at_once_where_its_output_cannot_be_written() -> None:
    """Otherwise the error would begin Python's shutdown, which waits for the other ranks."""
    command = [sys.executable, "-E", "-c", LEAVE]  # -E: PYTHONUNBUFFERED does not matter
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run(command, cwd=ROOT, stdout=full, check=False).returncode == 3
    written = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    assert (written.returncode, written.stdout) == (3, b"the last line\n")
