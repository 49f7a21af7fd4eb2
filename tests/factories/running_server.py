"""`clickmill serve` in processes of its own, and clients that keep asking it."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import free_port
from tests.factories.support import ROOT, children_where, wait_for

LINES = {"content-type": "text/plain"}


RESET = (ConnectionResetError, BrokenPipeError)


@dataclass
class RunningServer:
    """A server: its first process, its port, and the file of what it prints."""

    process: "subprocess.Popen[bytes]"
    port: int
    output: Path

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Send one request on a connection of its own; return the status and the JSON value."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        is_json = response.headers["content-type"] == "application/json"
        return response.status, json.loads(text) if is_json else text.decode()

    def score(self, lines: list[str], path: str = "/score") -> Any:
        """Return the answer for lines that are all right."""
        body = "".join(f"{line}\n" for line in lines).encode()
        status, answer = self.request("POST", path, body, LINES)
        assert status == 200, answer
        return answer

    def is_ready(self) -> bool:
        """Return whether it answers that it is ready."""
        try:
            return self.request("GET", "/ready")[0] == 200
        except OSError:
            return False

    def workers(self) -> list[psutil.Process]:
        """Return its live workers."""
        return children_where(
            lambda child: child.status() != psutil.STATUS_ZOMBIE, psutil.Process(self.process.pid)
        )

    def stop(self, timeout_s: float = 30) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines that it has printed."""
        return [json.loads(line) for line in self.output.read_text().splitlines()]


@contextmanager
def running_server(
    folder: Path, *options: str, ready: bool = True, files: int | None = None
) -> Iterator[RunningServer]:
    """Run `clickmill serve` with options until the block ends.

    Args:
        folder: For its output, and for its temporary files.
        options: Its options, without the port.
        ready: Whether to wait until it is ready.
        files: The number of files that each of its processes may open; None: as many as this one.
    """
    port, output = free_port(), folder / "serve.log"
    (folder / "tmp").mkdir(exist_ok=True)
    limited = ["prlimit", f"--nofile={files}:{files}"] if files else []
    code = "from flows.cli.main import app; app()"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*limited, sys.executable, "-c", code, "serve", "--port", str(port), *options],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    server = RunningServer(process, port, output)
    try:
        if ready:
            wait_for(lambda: server.is_ready() or process.poll() is not None, 60)
            assert process.poll() is None, output.read_text()
        yield server
    finally:
        if process.poll() is None:
            process.kill()  # its workers die with it
            process.wait()


@dataclass
class Load:
    """Clients that ask one after the other, each on one connection.

    Attributes:
        is_right: Whether a status and a JSON value are an answer that may be given.
        outcomes: The number of answers by status, and of connections that broke.
        wrong: Answers that are not right.
    """

    server: RunningServer
    bodies: list[tuple[bytes, dict[str, str]]]
    is_right: Callable[[int, int, Any], bool]
    num_clients: int = 4
    outcomes: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    wrong: list[Any] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(each,)) for each in range(self.num_clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        is_new = True  # no request was answered on this connection yet
        while not self._stop.is_set():
            is_new = is_new or connection.sock is None
            number = (number + 1) % len(self.bodies)
            body, headers = self.bodies[number]
            try:
                connection.request("POST", "/score", body, headers)
                response = connection.getresponse()
                text = response.read()
            except ConnectionRefusedError:
                self.outcomes["refused"] += 1
                connection.close()
                time.sleep(0.05)
                continue
            except (OSError, http.client.HTTPException) as error:
                kind = "never accepted" if is_new and type(error) in RESET else "broken"
                self.outcomes[f"{kind}: {type(error).__name__}"] += 1
                connection.close()
                continue
            is_new = False
            self.outcomes[str(response.status)] += 1
            answer = json.loads(text)
            if not self.is_right(number, response.status, answer):
                self.wrong.append((number, response.status, answer))
            if response.status == 200:
                self.versions[answer["version"]] += 1
        connection.close()
