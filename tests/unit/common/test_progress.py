"""Progress in a terminal and elsewhere, and the timing that is written."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.files import read_json
from common.progress import Progress
from tests.factories.support import ROOT

SCRIPT = """
import common.progress as module
from common.logs import configure_logging
configure_logging()
module.EVERY_S = 0
with module.Progress("train", 400, None, rows_before=100) as progress:
    for k in range(3):
        progress.update(100)
        print("valid  step", k, flush=True)
        progress.bar.refresh()
"""


def in_a_terminal(script: str) -> str:
    """Run a script in a terminal and return what the terminal receives."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 1 << 16):
            seen += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert child.wait() == 0, seen.decode()
    return seen.decode()


def test_one_updating_line_in_a_terminal() -> None:
    seen = in_a_terminal(SCRIPT)
    bars = re.findall(r"\rtrain|\ntrain|\x1b\[2Ktrain", seen)
    assert len(bars) >= 3
    assert re.search(r"train      50 %  200 rows  [\d,]+ rows/s  ETA \d+ s", seen)
    # What each line contains after it was erased and written again for the last time.
    lasting = [line.rsplit("\x1b[2K")[-1] for line in seen.split("\r\n")]
    assert [line for line in lasting if line.startswith("valid")] == [
        f"valid  step {k}" for k in range(3)
    ]
    ends = [line for line in lasting if line.startswith("train     100 %")]
    assert len(ends) == 1
    assert re.fullmatch(r"train     100 %  400 rows  [\d,]+ rows/s", ends[0])


def test_plain_lines_elsewhere_and_the_rate_of_this_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.progress.EVERY_S", 0)
    with Progress("train", 1000, tmp_path, rows_before=900) as progress:
        progress.update(50)
        progress.update(50)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"train      95 %  950 rows  [\d,]+ rows/s  ETA \d+ s", lines[0])
    timing = read_json(tmp_path / "runs/timings/train.json")
    assert timing["rows_per_s"] * timing["seconds"] - 100 < 1e-6
