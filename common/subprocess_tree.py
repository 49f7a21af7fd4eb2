"""Child processes: their output is streamed line by line, and they never outlive their parent."""

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

from common.masking import mask_passwords
from common.printable import printable_lines

PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that the kernel sends when the parent dies
TAIL_LINES = 10
# Environment variable: the process id of the torchrun agent, by which a rank knows its parent.
AGENT_PID = "CLICKMILL_AGENT_PID"
# Environment variables that torchrun sets for one rank; a child of a rank is not that rank.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

StopSignals = Sequence[tuple[signal.Signals, float]]
# Each signal and the number of seconds that the child has before the next one.
STOP_SIGNALS: StopSignals = (
    (signal.SIGINT, 20.0),
    (signal.SIGTERM, 10.0),
    (signal.SIGKILL, 5.0),
)

# The library is loaded here because importing between fork and exec is not safe.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


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
            "\n".join(
                [f"{mask_passwords(' '.join(command))} exited with {code}; its last lines:", *tail]
            )
        )
        self.command = list(command)
        self.code = code
        self.tail = list(tail)
        self.is_data_fault = code == os.EX_DATAERR
        self.is_config_fault = code == os.EX_CONFIG


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies, whatever the parent dies of.

    Call it first of all in a new process. Elsewhere than on Linux it does nothing.

    Args:
        parent: The process id of the parent, to notice that it died before this call. If it is
            None, a parent in another session counts as dead.
    """
    if not _libc:
        return
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent:
        is_orphan = os.getppid() != parent
    else:
        is_orphan = os.getsid(0) not in (os.getsid(os.getppid()), os.getpid())
    if is_orphan:
        os._exit(1)


def run_streaming(
    command: Sequence[str],
    log: Callable[[str], None],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stop: StopSignals = STOP_SIGNALS,
    when_orphaned: signal.Signals = signal.SIGTERM,
) -> None:
    """Run a command in a process group of its own and pass on each line of its output.

    Passwords in URLs are masked.

    Any exception here, such as Ctrl-C, a cancelled flow or an error in `log`, stops the whole
    process group before it is raised. What the command prints meanwhile is passed on too.

    Args:
        command: The command and its arguments.
        log: Receives each line of standard output and standard error, without its line end.
        cwd: The working directory.
        env: Environment variables that are added to those of this process.
        stop: The signals that stop the command, each with the seconds before the next one is sent.
        when_orphaned: The signal that the kernel sends to the command if this process dies.

    Raises:
        CommandFailed: The command exited with a code other than 0.
    """
    parent = os.getpid()
    if threading.current_thread() is threading.main_thread():
        # Polars has the kernel restart a read that Ctrl-C interrupts, so without this line Ctrl-C
        # would have no effect until the child prints something.
        signal.siginterrupt(signal.SIGINT, True)

    def set_up_child() -> None:
        # A parent that was started with `&` ignores SIGINT, and the child would inherit that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if _libc:
            _libc.prctl(PR_SET_PDEATHSIG, when_orphaned)
            if os.getppid() != parent:
                os._exit(1)

    inherited = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
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
        preexec_fn=set_up_child,
    ) as child:
        try:
            assert child.stdout
            for line in child.stdout:
                tail.append(printable_lines(mask_passwords(line.rstrip())))
                log(tail[-1])
            code = child.wait()
        except BaseException:
            last_lines = _stop(child, stop).splitlines()
            with suppress(Exception):  # `log` may be what raised
                for line in last_lines:
                    log(printable_lines(mask_passwords(line)))
            raise
    if code:
        raise CommandFailed(command, code, tail)


def _stop(child: "subprocess.Popen[str]", stop: StopSignals) -> str:
    """Stop a child's process group and return what the child printed meanwhile."""
    for stop_signal, grace_s in stop:
        try:
            os.killpg(child.pid, stop_signal)
            # communicate() reads while it waits: a child that writes to a full pipe cannot end.
            output, _ = child.communicate(timeout=grace_s)
            return output
        except ProcessLookupError:
            return ""
        except subprocess.TimeoutExpired:
            continue
    return ""
