"""The Prefect server that a run on this machine reports to: the one that is configured, or a temporary one."""

import logging
import os
import signal
import subprocess
import threading

import httpx
from prefect.server.api.server import SubprocessASGIServer, subprocess_server_logger
from prefect.settings import get_current_settings

ANSWER_WITHIN_S = 30.0  # a busy one, which Prefect would wait for as well
START_WITHIN_S = 120  # the temporary server: 6 s on an idle machine, over 20 s (Prefect's own limit) on a busy one
SAY_AFTER_S = 15.0
_WATCHES: list[
    "subprocess.Popen[bytes]"
] = []  # what they read from is open as long as this process is there


def ensure_server() -> str:
    """Return the URL of the server that flows report to, starting a temporary one where none is configured.

    Raises ConnectionError where the configured server gives no answer, or the temporary one does not start within START_WITHIN_S.

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
            start_patiently(server)
            assert server.server_process
            end_with_this_process(server.server_process.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.environ["PREFECT_API_URL"] = (
            server.api_url
        )  # a flow in a child process reports there too
        return server.api_url
    try:
        httpx.get(f"{url}/health", timeout=ANSWER_WITHIN_S)
    except httpx.TransportError as error:
        raise ConnectionError(
            f"PREFECT_API_URL is {url}, where no server answers ({error}); start it (prefect server start), "
            "or do without: prefect config unset PREFECT_API_URL"
        ) from None
    return url


def start_patiently(server: SubprocessASGIServer) -> None:
    """Start the temporary server, saying so where it takes long. Raises ConnectionError after START_WITHIN_S, or where it ends early."""
    say = threading.Timer(
        SAY_AFTER_S,
        print,
        [f"clickmill: waiting up to {START_WITHIN_S} s for Prefect's temporary server"],
        {"flush": True},
    )
    say.daemon = True
    say.start()
    try:
        server.start(timeout=START_WITHIN_S)
    except (RuntimeError, httpx.HTTPError) as error:
        server.stop()
        raise ConnectionError(
            f"Prefect's temporary server did not start within {START_WITHIN_S} s ({type(error).__name__}: {error}); "
            "run `prefect server start` in another terminal to see why, or try again on a less busy machine"
        ) from None
    finally:
        say.cancel()


def end_with_this_process(pid: int) -> None:
    """Have a process killed when this one has ended, also by SIGKILL: a shell reads from here until nothing can come any more."""
    watch = ["sh", "-c", 'read _; kill -9 "$0"', str(pid)]
    _WATCHES.append(
        subprocess.Popen(
            watch,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    )
