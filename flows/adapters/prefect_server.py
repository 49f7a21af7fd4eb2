"""Prefect's temporary server, started by us: `SubprocessASGIServer` is a private class of Prefect.

Prefect would start it inside the flow, in the terminal's process group, where Ctrl-C ends it before
the flow has reported its end. And Prefect waits 20 s for it, which is too short on a busy machine
(https://github.com/PrefectHQ/prefect/issues/16397).
"""

import logging
import signal
import subprocess
import threading

import httpx
from prefect.server.api.server import SubprocessASGIServer, subprocess_server_logger

START_WITHIN_S = 120  # 6 s on an idle machine, over 20 s on a busy one
SAY_AFTER_S = 15.0

# The processes that end the servers. Their pipes stay open as long as this process runs.
_watchers: list["subprocess.Popen[bytes]"] = []


def start_temporary_server() -> str:
    """Start a temporary server, which ends with this process, and return its API's URL.

    Raises:
        ConnectionError: It did not answer within START_WITHIN_S seconds.
    """
    # A filter and not a level: this is Prefect's own logger, and with a level the flow's lines
    # would be lost too.
    subprocess_server_logger.addFilter(lambda record: record.levelno >= logging.WARNING)
    server = SubprocessASGIServer()
    # The server inherits the mask, so that the terminal's Ctrl-C reaches only the flow.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        _start(server)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    assert server.server_process
    _kill_when_this_process_ends(server.server_process.pid)
    return server.api_url


def _start(server: SubprocessASGIServer) -> None:
    notice = f"clickmill: waiting up to {START_WITHIN_S} s for Prefect's temporary server"
    timer = threading.Timer(SAY_AFTER_S, print, [notice], {"flush": True})
    timer.daemon = True
    timer.start()
    try:
        server.start(timeout=START_WITHIN_S)
    except (RuntimeError, httpx.HTTPError) as error:
        server.stop()
        raise ConnectionError(
            f"Prefect's temporary server did not start within {START_WITHIN_S} s "
            f"({type(error).__name__}: {error}); run `prefect server start` in another terminal "
            "to see why, or try again when the machine is less busy"
        ) from None
    finally:
        timer.cancel()


def _kill_when_this_process_ends(pid: int) -> None:
    """Kill a process when this one has ended: a shell waits for the end of a pipe that we hold."""
    command = ["sh", "-c", 'read _; kill -9 "$0"', str(pid)]
    _watchers.append(
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    )
