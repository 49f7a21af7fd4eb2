"""A server as a process of its own: it is started, asked until it answers, and stopped."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from load.clients import Requests

START_S = 120.0
STOP_S = 40.0


@contextmanager
def running(
    command: Sequence[str], port: int, requests: Requests, log: Path | None = None
) -> Iterator[psutil.Process]:
    """Start a server, wait until it has answered each different request once, and stop it.

    Args:
        command: Its command, with the port.
        port: Its port.
        requests: Requests that it answers with 200 when it is ready.
        log: The file that its output goes to; it is thrown away if there is none.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    with (log or Path(os.devnull)).open("ab") as output:
        server = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline_s = time.monotonic() + START_S
        for path in requests.paths:
            while not answers(port, path, requests):
                if server.poll() is not None or time.monotonic() > deadline_s:
                    sys.exit(f"{' '.join(command)}: no answer from {path}; exit {server.poll()}")
                time.sleep(0.1)
        yield psutil.Process(server.pid)
    finally:
        stop(server)


def stop(server: "subprocess.Popen[bytes]") -> None:
    """Stop a server, and whatever it leaves in its session."""
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # its own session: start_new_session
    server.wait()


def answers(port: int, path: str, requests: Requests) -> bool:
    """Return whether a server answers a request with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"Content-Type": requests.content_type}
        connection.request("POST", path, requests.bodies[0], headers)
        response = connection.getresponse()
        response.read()
        return response.status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


def cpu_s(server: psutil.Process) -> float:
    """Return the processor time of a server and its children so far."""
    times = [one.cpu_times() for one in [server, *server.children(recursive=True)]]
    return float(sum(one.user + one.system for one in times))


def memory_mib(server: psutil.Process) -> float:
    """Return the memory of a server and its children: pages that processes share count by share."""
    processes = [server, *server.children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes) / 2**20
