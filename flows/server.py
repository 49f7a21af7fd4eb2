"""The Prefect server that a run on this machine reports to: the one that is configured, or a temporary one."""

import logging
import os
import signal
import subprocess

import httpx
from prefect.server.api.server import SubprocessASGIServer, subprocess_server_logger
from prefect.settings import get_current_settings

ANSWER_WITHIN_S = 30.0  # a busy one, which Prefect would wait for as well
_WATCHES: list["subprocess.Popen[bytes]"] = []  # what they read from is open as long as this process is there


def ensure_server() -> str:
    """See that there is a server for a flow to report to; its URL. Raises ConnectionError where the configured one gives no answer.

    The temporary server is started here and not by the flow, with Ctrl-C blocked, which it inherits: a terminal sends Ctrl-C to both, and a
    flow whose server is gone would try for minutes to tell it that it was interrupted.
    """
    url = get_current_settings().api.url
    if url is None:
        # not by its level: this is Prefect's own logger, and the flow's lines would be gone with it
        subprocess_server_logger.addFilter(lambda record: record.levelno >= logging.WARNING)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            server = SubprocessASGIServer()
            server.start()
            assert server.server_process
            end_with_this_process(server.server_process.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.environ["PREFECT_API_URL"] = server.api_url  # a flow in a child process reports there too
        return server.api_url
    try:
        httpx.get(f"{url}/health", timeout=ANSWER_WITHIN_S)
    except httpx.TransportError as error:
        raise ConnectionError(
            f"PREFECT_API_URL is {url}, where no server answers ({error}); start it (prefect server start), "
            "or do without: prefect config unset PREFECT_API_URL"
        ) from None
    return url


def end_with_this_process(pid: int) -> None:
    """Have a process killed when this one has ended, also by SIGKILL: a shell reads from here until nothing can come any more."""
    watch = ["sh", "-c", 'read _; kill -9 "$0"', str(pid)]
    _WATCHES.append(
        subprocess.Popen(watch, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    )
