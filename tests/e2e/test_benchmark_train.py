"""benchmarks/train.py with tables, rows and rounds as small as they go, and nothing of others to run beside."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.factories.support import ROOT

pytestmark = pytest.mark.slow

CONTENDERS = ["our loop fp32", "our loader"]
NUM_ROWS = 2048


def test_contenders_take_turns_and_report(tmp_path: Path) -> None:
    options = f"--small --rounds 2 --rows {NUM_ROWS} --batch 512 --threads 1 --json {tmp_path / 'figures.json'}".split()
    command = [sys.executable, "benchmarks/train.py", *options, "--only", *CONTENDERS]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    (result,) = json.loads((tmp_path / "figures.json").read_text())["results"]
    measured = result["measured"]
    assert list(measured) == CONTENDERS
    steps = {name: [window["steps"] for window in one["windows"]] for name, one in measured.items()}
    assert set(map(tuple, steps.values())) == {(4, 4)}
    for one in measured.values():
        assert one["rows_per_s"] > 0
        assert 50 < one["peak_mib"] < 5000
        assert 0.1 < one["to_first_step_s"] < 200
    assert {one["beside"] for one in measured.values()} == {"our loop fp32"}
    assert measured["our loop fp32"]["ratio"] == 1 < measured["our loader"]["ratio"]
    for line in (
        "left out: reference: no checkout given",
        "| our loop fp32 | ",
        "| our loader: times our loop fp32 | ",
        "2.88 MFLOP",
    ):
        assert line in ran.stdout


def test_what_a_step_costs_follows_from_the_widths() -> None:
    """Counted by hand for Kaggle's: bottom 13-512-256-64-16, top 367-512-256-1, 27 vectors of 16."""
    code = "from speed.work import Work; work = Work('', 1, 1, 1); print(work.flop_per_row, work.table_bytes_per_row)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "benchmarks",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    bottom = 13 * 512 + 512 * 256 + 256 * 64 + 64 * 16
    top = 367 * 512 + 512 * 256 + 256
    assert ran.stdout.split() == [
        b"%d" % (6 * (bottom + top) - 2 * 13 * 512 + 4 * 27 * 27 * 16),
        b"%d" % (5 * 26 * 16 * 4),
    ]
