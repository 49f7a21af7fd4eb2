"""A small run of benchmarks/train.py, without other implementations to compare with."""

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
PRINT_COSTS = """
from speed.work import Work
work = Work("", 1, 1, 1)
print(work.flop_per_row, work.table_bytes_per_row)
"""


def run_python(*arguments: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    """Run Python with the code of this repository."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_contenders_take_turns_and_are_reported(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = f"--small --rounds 2 --rows {NUM_ROWS} --batch 512 --threads 1".split()
    words = ["benchmarks/train.py", *options, "--json", str(figures), "--only", *CONTENDERS]
    done = run_python(*words, directory=ROOT)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(figures.read_text())["results"]
    measured = result["measured"]
    assert list(measured) == CONTENDERS
    for contender in measured.values():
        assert [window["steps"] for window in contender["windows"]] == [4, 4]
        assert contender["rows_per_s"] > 0
        assert 50 < contender["peak_mib"] < 5000
        assert 0.1 < contender["to_first_step_s"] < 200
        assert contender["beside"] == "our loop fp32"
    assert measured["our loop fp32"]["ratio"] == 1 < measured["our loader"]["ratio"]
    for line in (
        "left out: reference: no checkout given",
        "| our loop fp32 | ",
        "| our loader: times our loop fp32 | ",
        "2.88 MFLOP",
    ):
        assert line in done.stdout


def test_the_costs_of_a_step_follow_from_the_widths() -> None:
    """The expected costs are counted by hand for the widths of the reference's Kaggle example.

    The widths are 13-512-256-64-16 (bottom MLP) and 367-512-256-1 (top MLP), with 27 vectors of 16.
    """
    bottom = 13 * 512 + 512 * 256 + 256 * 64 + 64 * 16
    top = 367 * 512 + 512 * 256 + 256
    flop_per_row = 6 * (bottom + top) - 2 * 13 * 512 + 4 * 27 * 27 * 16
    table_bytes_per_row = 5 * 26 * 16 * 4
    done = run_python("-c", PRINT_COSTS, directory=ROOT / "benchmarks")
    assert done.stdout.split() == [str(flop_per_row), str(table_bytes_per_row)]


@pytest.mark.parametrize("isa", ["avx2", None])
def test_all_implementations_are_measured_and_one_is_chosen(isa: str | None) -> None:
    """The exit status depends on speeds, so it is not tested here."""
    flags = Path("/proc/cpuinfo").read_text().split()
    if isa and "avx2" not in flags:
        pytest.skip("this CPU has no AVX2")
    if not isa and "avx2" in flags and "avx512f" not in flags:
        pytest.skip("this CPU has nothing above AVX2, which the other case measures")
    options = f"--small --rounds 1 --batch 512 --threads 1 {f'--isa {isa}' if isa else ''}".split()
    done = run_python("benchmarks/paths.py", *options, directory=ROOT)
    assert done.returncode == 0 or "slower than others" in done.stderr, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("B=512")]
    assert [line.split("B=512   ")[1][:22].strip() for line in lines][:2] == [
        "plain fp32",
        "onednn fp32",
    ]
    precisions = {word for line in lines for word in line.split() if word in ("fp32", "bf16")}
    assert sum("<- chosen" in line for line in lines) == len(precisions)
    if isa:
        assert "instructions: torch AVX2; oneDNN Intel AVX2;" in done.stdout
