"""Programs that start an engine on Ray or join a cluster, in processes of their own."""

import os
import subprocess
import sys

import psutil

from tests.factories.support import ROOT

Started = tuple["subprocess.Popen[str]", list[psutil.Process]]
GONE_WITHIN_S = 10.0  # what a driver has started, after its end


def environment(**more: str) -> dict[str, str]:
    """Return the environment for a program that imports this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run(code: str, *args: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end."""
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env=environment(**more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
