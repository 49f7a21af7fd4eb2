"""Ends a cluster of Ray together with the process that has started it, whatever this dies of.

`python -m training.servers.ray_watchdog FOLDER` reads its standard input, a pipe from the process
that starts the cluster. When the pipe ends, it kills what is left of the cluster and removes the
cluster's folder. If the cluster or an actor was starting, it says that the training has failed,
because Ray can end the process that starts it without a chance to do so.

The kernel ends Ray's server processes together with the process that has started them, but not
their children: Ray's two agents look for a server that is gone for more than a minute.
"""

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

TOKEN_VARIABLE = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - the path of a file
TOKEN_FILE = "token"  # noqa: S105
STARTING_FILE = "starting"  # exists in the folder while the cluster or an actor starts
NOT_STARTED = (
    "clickmill: error: training with parameter servers failed: the train stage has ended while a "
    "Ray cluster or an actor started on this machine. Ray ends it if one of the cluster's "
    "processes is killed then; run it again"
)
KILLED_WITHIN_S = 5.0


def start_watchdog(folder: Path) -> "subprocess.Popen[bytes]":
    """Start the watchdog of a cluster. It acts when its standard input is closed.

    Args:
        folder: The folder of the cluster. All processes of the cluster have the path of the token
            in it in their environment.
    """
    return subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # signals to this process group, as from Ctrl-C, do not end it
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes of the cluster with this folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.environ().get(TOKEN_VARIABLE) == str(folder / TOKEN_FILE):
                found.append(process)
    return found


def main(folder: Path) -> None:
    """Wait for the end of the standard input, then end the cluster and remove its folder."""
    sys.stdin.read()
    if (folder / STARTING_FILE).exists():
        with suppress(OSError):  # nobody may read it any more
            print(NOT_STARTED, file=sys.stderr, flush=True)
    while processes := processes_of(folder):  # again, as one may have been about to start another
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=KILLED_WITHIN_S)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
