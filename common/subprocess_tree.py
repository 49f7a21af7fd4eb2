"""Run a command as a child process: stream its lines, fail on a non-zero exit, and never leave it behind."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
TAIL_LINES = 10
AGENT_PID = "CLICKMILL_AGENT_PID"  # by which a rank knows its parent
OF_ONE_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STOP = (
    (signal.SIGINT, 20.0),
    (signal.SIGTERM, 10.0),
    (signal.SIGKILL, 5.0),
)  # (signal, seconds of grace)

_libc = (
    ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
)  # before any fork: imports are not safe after it


class CommandFailed(RuntimeError):  # noqa: N818
    """A command exited with a code other than 0.

    Attributes:
        command: The command and its arguments.
        code: The exit code.
        tail: The last lines that the command printed.
        is_data_fault: The command reported, by EX_DATAERR, that the user's data is at fault.
        is_config_fault: The command reported, by EX_CONFIG, that the configuration is at fault.
    """

    def __init__(self, command: Sequence[str], code: int, tail: Sequence[str]) -> None:
        super().__init__(
            "\n".join([f"{' '.join(command)} exited with {code}; its last lines:", *tail])
        )
        self.command = list(command)
        self.code = code
        self.tail = list(tail)
        self.is_data_fault = code == os.EX_DATAERR
        self.is_config_fault = code == os.EX_CONFIG


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies, however that dies; call it first thing (Linux; elsewhere it does nothing).

    A parent that was gone before the call is recognised by its stand-in, which is not `parent`; where the caller does not know that, by
    its living in another session.
    """
    if _libc:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        gone = (
            os.getppid() != parent
            if parent
            else os.getsid(0) not in (os.getsid(os.getppid()), os.getpid())
        )
        if gone:
            os._exit(1)


def run_streaming(
    command: Sequence[str],
    log: Callable[[str], None],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stop: Sequence[tuple[signal.Signals, float]] = STOP,
    when_orphaned: signal.Signals = signal.SIGTERM,
) -> None:
    """Run command in a process group of its own, handing each line of its output to log.

    env is laid over this process's environment; when_orphaned is what the kernel sends the child when this process dies. Raises
    CommandFailed on a non-zero exit. On any exception here (Ctrl-C, a cancelled flow, an error in log) the group is stopped by the
    signals of stop, one after the other, and what it says meanwhile goes to log, before the exception goes on.
    """
    parent = os.getpid()
    if threading.current_thread() is threading.main_thread():
        # Polars has the kernel resume the read that a Ctrl-C interrupts: behind a silent child it would not be seen
        signal.siginterrupt(signal.SIGINT, True)

    def setup() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a parent started with `&` has it ignored
        if _libc:
            _libc.prctl(PR_SET_PDEATHSIG, when_orphaned)
            if os.getppid() != parent:
                os._exit(1)

    inherited = {name: value for name, value in os.environ.items() if name not in OF_ONE_RANK}
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**inherited, "PYTHONUNBUFFERED": "1", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=setup,
    ) as child:
        try:
            assert child.stdout
            for line in child.stdout:
                tail.append(line.rstrip())
                log(tail[-1])
            code = child.wait()
        except BaseException:
            last_words = _stop(child, stop).splitlines()
            with suppress(Exception):  # log may be what failed
                for line in last_words:
                    log(line)
            raise
    if code:
        raise CommandFailed(command, code, tail)


def _stop(child: "subprocess.Popen[str]", stop: Sequence[tuple[signal.Signals, float]]) -> str:
    """What it had still to say."""
    for sig, grace_s in stop:
        try:
            os.killpg(child.pid, sig)
            return child.communicate(timeout=grace_s)[
                0
            ]  # reads on: a child blocked on a full pipe could not end
        except ProcessLookupError:
            return ""
        except subprocess.TimeoutExpired:
            continue
    return ""
