"""Why a stage failed is what the stage reported, whatever it printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.fault_file import FAULT_FILE, Fault, read_fault
from common.subprocess_tree import CommandFailed
from flows.dvc_stages import StageFailed
from tests.factories.support import ROOT

PRINTED = ["clickmill: error: all is well", "exited with 65", "exited with 78"]


def test_what_a_stage_printed_is_neither_its_reason_nor_its_exit_code() -> None:
    failed = StageFailed("ingest", CommandFailed(["dvc"], 255, PRINTED), None)
    assert not failed.is_data_fault
    assert not failed.is_config_fault
    assert str(failed) == "stage ingest failed: exited with 65; exited with 78"
    reported = StageFailed(
        "ingest", CommandFailed(["dvc"], 255, PRINTED), Fault("a bad log", os.EX_DATAERR)
    )
    assert str(reported) == "stage ingest failed: a bad log"
    assert reported.is_data_fault


@pytest.mark.parametrize(
    ("params", "code", "reason"),
    [
        ("data:\n  source: nothing\x1b\n", os.EX_CONFIG, "params.yaml"),
        (None, os.EX_DATAERR, "data.source: no log found at 'no\\nclickmill: error: fine'"),
    ],
)
def test_a_stage_reports_its_fault_in_a_file(
    tmp_path: Path, params: str | None, code: int, reason: str
) -> None:
    text = params or (ROOT / "params.yaml").read_text().replace(
        "source: sample", 'source: "no\\nclickmill: error: fine"', 1
    )
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    file = tmp_path / "fault.json"
    command = [sys.executable, "-c", "from flows.cli.main import app; app()", "stage", "collect"]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {FAULT_FILE: str(file), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code, run.stderr
    fault = read_fault(file)
    assert fault
    assert fault.code == code
    assert reason in fault.message
    assert all(line.startswith("clickmill: error: ") for line in run.stderr.splitlines())
    assert "\x1b" not in run.stderr


def test_a_killed_stage_reports_nothing(tmp_path: Path) -> None:
    assert read_fault(tmp_path / "fault.json") is None
