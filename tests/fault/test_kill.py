"""kill -9 at any moment: nothing goes on writing behind DVC's back, and a rerun ends where an undisturbed run does."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.subprocess_tree import CommandFailed, run_streaming
from flows.adapters.dvc import remove_damaged_locks
from tests.conftest import Project
from tests.factories.support import ROOT, still_running, wait_for

NUM_KILLS = 10
LATEST_S = 10.0  # about what an undisturbed run takes
SEED = 1
WITHIN_S = 15.0


def test_ten_kills_then_the_same_lock(finished: Project, project: Project) -> None:
    moments = random.Random(SEED)
    num_kills = 0
    while num_kills < NUM_KILLS:
        child = project.start("dvc", "repro", "--force")
        try:
            output, _ = child.communicate(timeout=moments.uniform(0.3, LATEST_S))
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
            assert gone(project), project.processes()
            child.communicate()
            remove_damaged_locks(project.root)  # as the flow does: DVC may have been writing it
            num_kills += 1
        else:
            assert child.returncode == 0, output
    project.run("dvc", "repro")
    assert project.lock == finished.lock
    assert "up to date" in project.run("dvc", "repro")
    project.run(
        "dvc", "repro", "--force"
    )  # a stage that was up to date when it was killed leaves its scratch to its next run
    assert project.lock == finished.lock
    assert not list((project.root / "artifacts").rglob(".*.tmp"))


def test_a_lock_that_a_kill_cut_short_is_made_again(copy: Project) -> None:
    whole, path = copy.lock, copy.root / "dvc.lock"
    for end in (0, 10, whole.index("deps:") + len("deps:")):
        path.write_text(whole[:end])
        remove_damaged_locks(copy.root)
        assert not path.exists()
    conflict = f"<<<<<<< ours\n{whole}=======\n{whole}>>>>>>> theirs\n"
    path.write_text(conflict)
    remove_damaged_locks(copy.root)
    assert copy.lock == conflict
    path.write_text(whole)
    for text in ("", '{"write": {"/ho'):
        (copy.root / ".dvc/tmp/rwlock").write_text(text)
        assert "Unable to read RWLock" in copy.run(
            "dvc", "repro", "--force", "--single-item", "collect", code=255
        )
    path.write_text(whole[:10])
    copy.run("python", "-c", "from flows.stages import *; repro('collect', Path(), print)")
    copy.run("dvc", "repro")
    assert copy.lock == whole


def test_killed_flow_leaves_nothing(copy: Project) -> None:
    copy.set_param("train", "seed", 2)
    child = copy.start("python", "-c", "from flows.stages import *; repro('train', Path(), print)")
    wait_for(lambda: copy.processes("clickmill stage train"))
    chain = [process for process in copy.processes() if process.pid != child.pid]
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    _, there = psutil.wait_procs(
        chain, timeout=WITHIN_S
    )  # gone and collected by init: DVC asks whether its lock's PID is there
    assert not there
    assert "Running stage 'train'" in copy.run("dvc", "repro", "train")


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_stops_all(copy: Project, sig: signal.Signals) -> None:
    before = copy.lock
    copy.set_param("train", "seed", 2)
    child = copy.start("clickmill", "run")
    wait_for(lambda: copy.processes("clickmill stage train"))
    if sig == signal.SIGINT:
        os.killpg(
            child.pid, sig
        )  # as a terminal does: Prefect's temporary server is in the same group
    else:
        child.send_signal(sig)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 128 + sig
    assert "clickmill: stopped; the next run begins with the stage that was not done" in output
    assert copy.lock == before  # the stage was stopped, not waited for
    assert gone(copy), copy.processes()


def test_command_failed_has_the_last_lines(tmp_path: Path) -> None:
    lines: list[str] = []
    script = "import sys; print('one'); print('two', file=sys.stderr, flush=True); sys.exit(3)"
    with pytest.raises(CommandFailed, match="exited with 3") as failed:
        run_streaming([sys.executable, "-c", script], lines.append, cwd=tmp_path, env={})
    assert sorted(lines) == sorted(failed.value.tail) == ["one", "two"]
    assert failed.value.code == 3


def test_the_last_words_of_a_child_that_is_stopped_are_heard(tmp_path: Path) -> None:
    """Ctrl-C on the parent, which stops the child by one of its own."""
    script = "import time\ntry:\n print('here', flush=True)\n time.sleep(60)\nexcept KeyboardInterrupt:\n print('where I was')"
    lines: list[str] = []

    def listen(line: str) -> None:
        lines.append(line)
        if line == "here":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_streaming([sys.executable, "-c", script], listen, cwd=tmp_path, env={})
    assert lines == ["here", "where I was"]


def test_an_error_in_the_listener_stops_the_child(tmp_path: Path) -> None:
    def listen(line: str) -> None:
        raise KeyError(line)

    started_s = time.monotonic()
    with pytest.raises(KeyError):
        run_streaming(
            [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"],
            listen,
            cwd=tmp_path,
            env={},
        )
    assert time.monotonic() - started_s < 30  # stopped, not waited for
    assert gone(Project(tmp_path, {}))


def gone(project: Project) -> bool:
    """Whether no process works in the checkout any more, within a moment."""
    _, there = psutil.wait_procs(project.processes(), timeout=WITHIN_S)
    return not there and not project.processes()


SILENT = """
import sys, polars
from pathlib import Path
from common.subprocess_tree import run_streaming
polars.LazyFrame({"a": [1]}).collect()
script = "import time; print('here', flush=True); time.sleep(60)"
run_streaming([sys.executable, "-c", script], lambda line: print(line, flush=True), cwd=Path(), env={})
"""


def test_ctrl_c_ends_a_child_that_says_nothing() -> None:
    """Polars' handler has the kernel resume a read that a signal interrupts."""
    with subprocess.Popen(
        [sys.executable, "-c", SILENT],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "here\n"
        family = psutil.Process(parent.pid).children(recursive=True)
        time.sleep(0.5)
        parent.send_signal(signal.SIGINT)
        try:
            assert parent.wait(15) != 0
        finally:
            parent.kill()
    assert not still_running(family, within_s=5)
