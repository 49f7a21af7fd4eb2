"""Prefect's temporary server, started by us as Prefect's own class `SubprocessASGIServer` does.

Prefect would start it inside the flow, in the terminal's process group, where Ctrl-C ends it before
the flow has reported its end. Prefect waits 20 s for it, which is too short on a busy machine
(https://github.com/PrefectHQ/prefect/issues/16397), and nothing else can be done meanwhile. The
import of its class alone takes 2 s.
"""

import atexit
import os
import socket
import subprocess
import sys
import threading
import time

import httpx
from prefect.settings import get_current_settings

from flows.prefect_login import CLIENT_LOGIN, SERVER_LOGIN, make_login

START_WITHIN_S = 120  # 4 s on an idle machine, over 20 s on a busy one
SAY_AFTER_S = 15.0
ASK_EVERY_S = 0.1
STOP_WITHIN_S = 5.0
COMMAND = [sys.executable, "-m", "flows.adapters.temporary_server"]
# Prefect's marks of a server that serves no pages and ends with its parent. Our plugin would search
# for another server.
ENVIRONMENT = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_PLUGINS_ENABLED": "0",
}


class TemporaryServer:
    """A temporary server, which starts when it is made and ends with this process.

    Make it in the main thread: Linux ends the server with the thread that started it.

    Attributes:
        url: The URL of its API.
        login: What its clients send, USER:PASSWORD. Nobody else knows it.
    """

    def __init__(self) -> None:
        self.login = make_login()
        # It listens from now on, so no other process can take the port before the server is ready.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
            self.url = f"{origin}/api"
            self.process = self._start(listener.fileno(), origin)
        atexit.register(self.stop)

    def _start(self, listener: int, origin: str) -> "subprocess.Popen[bytes]":
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        own = {
            SERVER_LOGIN: self.login,
            CLIENT_LOGIN: self.login,
            "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": origin,
        }
        return subprocess.Popen(
            [*COMMAND, str(listener), str(os.getpid())],
            env={**os.environ, **settings, **ENVIRONMENT, **own},
            pass_fds=[listener],
            # Ctrl-C, or SIGTERM to a whole group of processes, must not end the server before this
            # process, which has to report its own end to it.
            start_new_session=True,
        )

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            ConnectionError: It ended, or did not answer within START_WITHIN_S seconds.
        """
        notice = f"clickmill: waiting up to {START_WITHIN_S} s for Prefect's temporary server"
        timer = threading.Timer(SAY_AFTER_S, print, [notice], {"flush": True})
        timer.daemon = True
        timer.start()
        try:
            fault = self._wait()
        finally:
            timer.cancel()
        if fault:
            self.stop()
            raise ConnectionError(
                f"Prefect's temporary server did not start: {fault}; "
                "run `prefect server start` in another terminal to see why, or try again when the "
                "machine is less busy"
            )

    def stop(self) -> None:
        """Let the server write what it has in memory, and end."""
        self.process.terminate()
        try:
            self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait(self) -> str | None:
        """Return what is wrong, or None when the server answers."""
        end_s = time.monotonic() + START_WITHIN_S
        while time.monotonic() < end_s:
            if (code := self.process.poll()) is not None:
                return f"it exited with {code}"
            try:
                left_s = max(end_s - time.monotonic(), ASK_EVERY_S)
                if httpx.get(f"{self.url}/health", timeout=left_s).is_success:
                    return None
            except httpx.TransportError:
                pass
            time.sleep(ASK_EVERY_S)
        return f"it did not answer within {START_WITHIN_S} s"
