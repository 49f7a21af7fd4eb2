"""Killed and interrupted runs leave no process, and a rerun completes their work."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.config.loading import ConfigError
from common.subprocess_tree import CommandFailed, run_streaming
from flows.adapters.dvc import remove_damaged_locks
from tests.conftest import Project
from tests.factories.support import ROOT, still_running, wait_for

pytestmark = pytest.mark.slow

NUM_KILLS = 10
MAX_DELAY_S = 10.0  # about the time that an undisturbed run takes
SEED = 1
WITHIN_S = 15.0


def repro(stage: str) -> tuple[str, ...]:
    """Return the command that runs one stage as the flow does."""
    code = f"from flows.dvc_stages import *; repro({stage!r}, Path(), print)"
    return "python", "-c", code


def has_no_process(project: Project) -> bool:
    """Return whether all processes in the checkout end within WITHIN_S seconds."""
    _, alive = psutil.wait_procs(project.processes(), timeout=WITHIN_S)
    return not alive and not project.processes()


def test_a_rerun_after_ten_kills_gives_the_same_lock(finished: Project, project: Project) -> None:
    rng = random.Random(SEED)
    num_kills = 0
    while num_kills < NUM_KILLS:
        child = project.start("dvc", "repro", "--force")
        try:
            output, _ = child.communicate(timeout=rng.uniform(0.3, MAX_DELAY_S))
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
            assert has_no_process(project), project.processes()
            child.communicate()
            remove_damaged_locks(project.root)  # as the flow does
            num_kills += 1
        else:
            assert child.returncode == 0, output
    project.run("dvc", "repro")
    assert project.lock == finished.lock
    assert "up to date" in project.run("dvc", "repro")
    # A stage that was killed while it was up to date leaves scratch files until its next run.
    project.run("dvc", "repro", "--force")
    assert project.lock == finished.lock
    assert not list((project.root / "artifacts").rglob(".*.tmp"))


def test_a_damaged_lock_is_removed_and_written_again(copy: Project) -> None:
    whole, path = copy.lock, copy.root / "dvc.lock"
    for end in (0, 10, whole.index("deps:") + len("deps:")):
        path.write_text(whole[:end])
        remove_damaged_locks(copy.root)
        assert not path.exists()
    conflict = f"<<<<<<< ours\n{whole}=======\n{whole}>>>>>>> theirs\n"
    path.write_text(conflict)
    with pytest.raises(ConfigError, match=r"dvc\.lock contains the markers of a merge conflict"):
        remove_damaged_locks(copy.root)
    assert copy.lock == conflict
    path.write_text(whole)
    for text in ("", '{"write": {"/ho'):
        (copy.root / ".dvc/tmp/rwlock").write_text(text)
        assert "Unable to read RWLock" in copy.run(
            "dvc", "repro", "--force", "--single-item", "collect", code=255
        )
    path.write_text(whole[:10])
    copy.run(*repro("collect"))
    copy.run("dvc", "repro")
    assert copy.lock == whole


def test_a_killed_flow_leaves_no_process(copy: Project) -> None:
    copy.set_param("train", "seed", 2)
    child = copy.start(*repro("train"))
    wait_for(lambda: copy.processes("clickmill stage train"))
    descendants = [process for process in copy.processes() if process.pid != child.pid]
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    # A zombie process counts as running, because DVC only checks that the PID in its lock exists.
    _, alive = psutil.wait_procs(descendants, timeout=WITHIN_S)
    assert not alive
    assert "Running stage 'train'" in copy.run("dvc", "repro", "train")


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_all_processes(copy: Project, sig: signal.Signals) -> None:
    before = copy.lock
    copy.set_param("train", "seed", 2)
    child = copy.start("clickmill", "run")
    wait_for(lambda: copy.processes("clickmill stage train"))
    if sig == signal.SIGINT:
        # A terminal signals the process group, which includes Prefect's temporary server.
        os.killpg(child.pid, sig)
    else:
        child.send_signal(sig)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 128 + sig
    assert "clickmill: stopped; the next run begins with the stage that did not finish" in output
    assert copy.lock == before  # the stage was stopped before its end
    assert has_no_process(copy), copy.processes()


def test_command_failed_has_the_last_lines(tmp_path: Path) -> None:
    lines: list[str] = []
    script = "import sys; print('one'); print('two', file=sys.stderr, flush=True); sys.exit(3)"
    with pytest.raises(CommandFailed, match="exited with 3") as failed:
        run_streaming([sys.executable, "-c", script], lines.append, cwd=tmp_path, env={})
    assert sorted(lines) == sorted(failed.value.tail) == ["one", "two"]
    assert failed.value.code == 3


SLEEPING_CHILD = """
import time
try:
    print("started", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_the_last_lines_of_an_interrupted_child_are_passed_on(tmp_path: Path) -> None:
    """Ctrl-C stops the child with SIGINT; the child can print more lines before it ends."""
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line == "started":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_streaming([sys.executable, "-c", SLEEPING_CHILD], on_line, cwd=tmp_path, env={})
    assert lines == ["started", "interrupted"]


def test_an_error_in_the_callback_stops_the_child(tmp_path: Path) -> None:
    def on_line(line: str) -> None:
        raise KeyError(line)

    started_s = time.monotonic()
    with pytest.raises(KeyError):
        run_streaming([sys.executable, "-c", SLEEPING_CHILD], on_line, cwd=tmp_path, env={})
    assert time.monotonic() - started_s < 30  # the child was stopped before its end
    assert has_no_process(Project(tmp_path, {}))


SILENT_CHILD = """
import sys, polars
from pathlib import Path
from common.subprocess_tree import run_streaming
polars.LazyFrame({"a": [1]}).collect()
script = "import time; print('started', flush=True); time.sleep(60)"
run_streaming(
    [sys.executable, "-c", script], lambda line: print(line, flush=True), cwd=Path(), env={}
)
"""


def test_ctrl_c_stops_a_child_that_prints_nothing() -> None:
    """With Polars' signal handler, a signal does not end a read: the kernel continues it."""
    with subprocess.Popen(
        [sys.executable, "-c", SILENT_CHILD],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "started\n"
        descendants = psutil.Process(parent.pid).children(recursive=True)
        time.sleep(0.5)
        parent.send_signal(signal.SIGINT)
        try:
            assert parent.wait(15) != 0
        finally:
            parent.kill()
    assert not still_running(descendants, within_s=5)
