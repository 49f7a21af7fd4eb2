"""Child processes of a search do not receive Ctrl-C."""

import subprocess
import sys

import pytest

# A fresh interpreter, because only the first process that it starts also starts the resource
# tracker, which unblocks SIGINT.
SCRIPT = """
from pathlib import Path
from training.tune.processes import start_process

process, _ = start_process(len)
status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").open())
print(status["SigBlk"].strip())
process.kill()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows the blocked signals")
def test_even_the_first_process_has_sigint_blocked() -> None:
    command = [sys.executable, "-c", SCRIPT]
    mask = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(mask, 16) & 0b10, "bit 1 stands for signal 2, SIGINT"
