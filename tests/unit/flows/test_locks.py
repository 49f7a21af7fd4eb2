"""Locks: who is refused, who waits, and that a killed process releases its lock."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows import locks
from flows.locks import LockedError, nightly_lock, training_lock

HOLD = """
import sys, time
from pathlib import Path
from flows.locks import nightly_lock
with nightly_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_nightly_run_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(
                LockedError,
                match=rf"another nightly run is active in {tmp_path} \(process {holder.pid} on .+, since .+ UTC\)",
            ),
            nightly_lock(tmp_path),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    with nightly_lock(tmp_path):
        pass


def test_a_second_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "POLL_S", 0.01)
    told, done = [], threading.Event()

    def second() -> None:
        with training_lock(tmp_path, told.append):
            done.set()

    with (
        training_lock(tmp_path, told.append),
        nightly_lock(tmp_path),
    ):  # a night has a clone of its own
        waiting = threading.Thread(target=second)
        waiting.start()
        assert not done.wait(0.3)
    assert done.wait(10)
    waiting.join()
    assert len(told) == 1
    assert "this run waits for its end" in told[0]
