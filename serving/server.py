"""The server: it opens the socket, starts the workers, and replaces those that die.

All workers listen on one socket, which this process keeps open: what a worker that dies has not
accepted yet waits for another one. On SIGTERM or Ctrl-C the workers answer what they have accepted,
and the server exits with 0.
"""

import ipaddress
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from common.config.loading import ConfigError
from common.logs import get_logger
from serving.options import (
    BACKLOG,
    COPY_PREFIX,
    DRAIN_S,
    METRICS_FOLDER,
    ServeOptions,
    WorkerOptions,
)

CHECK_EVERY_S = 0.1
RESTART_AFTER_S = 1.0  # since the last start, so that a worker that cannot live takes no whole CPU
STOP_AFTER_S = DRAIN_S + 5
MIN_TOKEN_CHARS = 16
TOKEN_VARIABLE = "CLICKMILL_TOKEN"  # noqa: S105 (a name, no token)

log = get_logger("serve")


@dataclass
class Worker:
    """A process that answers requests."""

    process: "subprocess.Popen[bytes]"
    started_s: float


class Supervisor:
    """The processes of a server, which stop on SIGTERM or SIGINT.

    Args:
        options: What they serve.
        listener: The socket that they listen on.
        num_workers: Their number.
        metrics_folder: Where they count.
    """

    def __init__(
        self, options: ServeOptions, listener: socket.socket, num_workers: int, metrics_folder: Path
    ) -> None:
        self._options = options
        self._listener = listener
        self._metrics_folder = metrics_folder
        self._stop = threading.Event()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: self._stop.set())
        self._workers = [self._start() for _ in range(num_workers)]

    def run(self) -> None:
        """Replace workers that die, until SIGTERM or SIGINT; then let them finish."""
        while not self._stop.wait(CHECK_EVERY_S):
            for place, worker in enumerate(self._workers):
                code = worker.process.poll()
                if code is not None and time.monotonic() - worker.started_s >= RESTART_AFTER_S:
                    log.error(
                        "worker %d exited with %d; another one starts", worker.process.pid, code
                    )
                    self._forget(worker)
                    self._workers[place] = self._start()
        self._drain()

    def _start(self) -> Worker:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "serving.worker"],
            stdin=subprocess.PIPE,
            pass_fds=[self._listener.fileno()],
            env=os.environ | {METRICS_FOLDER: str(self._metrics_folder)},
        )
        options = WorkerOptions(
            serve=self._options, socket=self._listener.fileno(), parent=os.getpid()
        )
        assert process.stdin
        with suppress(BrokenPipeError):  # it has died already, which `run` notices
            process.stdin.write(options.model_dump_json().encode() + b"\n")
            process.stdin.close()
        return Worker(process, time.monotonic())

    def _drain(self) -> None:
        log.info("the server stops; requests that were accepted are answered")
        self._listener.close()
        for worker in self._workers:
            worker.process.terminate()
        deadline_s = time.monotonic() + STOP_AFTER_S
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker %d did not end; it is killed", worker.process.pid)
                worker.process.kill()
                worker.process.wait()
                self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        """Remove the gauges of a worker that died, and what it had copied of a model.

        What it counted stays, without the disk space that it reserved and did not use.
        """
        for file in self._metrics_folder.glob(f"*_{worker.process.pid}.db"):
            if file.name.startswith("gauge_live"):
                file.unlink()
            else:
                _shrink(file)
        for copy in Path(gettempdir()).glob(f"{COPY_PREFIX}{worker.process.pid}-*"):
            shutil.rmtree(copy, ignore_errors=True)


def _shrink(file: Path) -> None:
    """Cut a file of prometheus-client, which begins with the number of bytes that it uses."""
    with file.open("rb+") as opened:
        num_used = int.from_bytes(opened.read(4), sys.byteorder)
        if num_used:
            opened.truncate(num_used)


def serve(options: ServeOptions, host: str, port: int, num_workers: int) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        options: What to serve.
        host: The address to listen on.
        port: The port; 0 is any free one.
        num_workers: The number of workers.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    listener = listen(host, port)
    with listener, TemporaryDirectory(prefix="clickmill-metrics-") as folder:
        supervisor = Supervisor(options, listener, num_workers, Path(folder))
        name, number = listener.getsockname()[:2]
        log.info("serving %s at http://%s:%d", ", ".join(options.models), name, number)
        supervisor.run()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        ConfigError: That is not possible.
    """
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(address[0], socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address[4])
        listener.listen(BACKLOG)  # now, so that a second server is refused here
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror}; name another address or port"
        ) from None
    listener.set_inheritable(True)
    return listener


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_token(path: Path | None) -> str | None:
    """Return the token that clients must send; None if there is none.

    In a container it is the variable CLICKMILL_TOKEN: the file of a secret of Kubernetes belongs to
    root, so a server that is not root could only read it if others could too.

    Args:
        path: The file with the token; None: the variable has it, if it is set.

    Raises:
        ConfigError: The file or the variable has no token, or others can read the file.
    """
    if path is not None:
        return read_token(path)
    token = os.environ.pop(TOKEN_VARIABLE, None)  # the workers get it with their options
    if token is not None and not _is_token(token):
        raise ConfigError(
            f"{TOKEN_VARIABLE}: one token of {MIN_TOKEN_CHARS} characters or more expected; make"
            " one: openssl rand -hex 32"
        )
    return token


def read_token(path: Path) -> str:
    """Return the token in a file that only its owner can read.

    Raises:
        ConfigError: Others can read it, or it has no token.
    """
    remedy = f"make one: (umask 077; openssl rand -hex 32 > {path})"
    try:
        # A FIFO must not block, and a link may lead to a file of somebody else.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(number, encoding="ascii") as file:
            mode = os.fstat(number).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"--token-file {path}: this is no file; {remedy}")
            if access := stat.S_IMODE(mode) & 0o077:
                raise ConfigError(
                    f"--token-file {path}: other users have access (mode {access:03o}); {remedy}"
                )
            token = file.read(1 << 16).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise ConfigError(f"--token-file {path}: cannot be read: {reason}; {remedy}") from None
    if not _is_token(token):
        raise ConfigError(
            f"--token-file {path}: one token of {MIN_TOKEN_CHARS} characters or more expected;"
            f" {remedy}"
        )
    return token


def _is_token(text: str) -> bool:
    is_printed_ascii = text.isascii() and text.isprintable() and " " not in text
    return len(text) >= MIN_TOKEN_CHARS and is_printed_ascii
