"""Locks of a repository: a second nightly run is refused, and a second training waits."""

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
        message = (
            rf"another nightly run is active in {tmp_path} "
            rf"\(process {holder.pid} on .+, since .+ UTC\)"
        )
        with pytest.raises(LockedError, match=message), nightly_lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    with nightly_lock(tmp_path):
        pass


def test_a_second_training_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nightly run trains in a clone of its own, so its lock is independent."""
    monkeypatch.setattr(locks, "POLL_S", 0.01)
    lines: list[str] = []
    done = threading.Event()

    def train() -> None:
        with training_lock(tmp_path, lines.append):
            done.set()

    with training_lock(tmp_path, lines.append), nightly_lock(tmp_path):
        second = threading.Thread(target=train)
        second.start()
        assert not done.wait(0.3)
    assert done.wait(10)
    second.join()
    (line,) = lines
    assert "this run waits for its end" in line
