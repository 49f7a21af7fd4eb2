"""The login of the Prefect server: its file, and who is taken for the server."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_HOME,
    PREFECT_SERVER_API_PORT,
    temporary_settings,
)

from common.config.loading import ConfigError
from flows.prefect_login import (
    CLIENT_LOGIN,
    FILE_NAME,
    SERVER_LOGIN,
    create_login,
    is_our_server,
    listening_sockets,
    login_of_server,
    make_login,
    stored_login,
)
from flows.prefect_plugin import local_server, starts_server
from tests.conftest import free_port

LOGIN = "clickmill:s3cret"
# A server that answers each GET with a version after a delay, and prints the head of each request.
SERVER = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, self.headers.get("Authorization"), flush=True)
        time.sleep(float(sys.argv[2]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())

    def log_message(self, *args):
        pass

server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


# Eight servers start at once, ten times, each time without a file. Prints a line for each server.
START_AT_ONCE = """
import multiprocessing
from flows.prefect_login import create_login, login_file
context = multiprocessing.get_context("fork")
together = context.Barrier(8, action=lambda: login_file().unlink(missing_ok=True))
def start(number):
    logins = []
    for _ in range(10):
        together.wait()
        logins.append(create_login())
    return logins
with context.Pool(8) as pool:
    for logins in pool.map(start, range(8), chunksize=1):
        print(*logins)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty PREFECT_HOME, and no login in the environment."""
    monkeypatch.setenv(CLIENT_LOGIN, "")
    settings = {PREFECT_HOME: tmp_path / "home", PREFECT_API_AUTH_STRING: None}
    with temporary_settings(settings):
        yield tmp_path / "home"


@contextmanager
def stranger_or_server(
    login: str | None, answer: str = '"3.4"', delay_s: float = 0
) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """Run SERVER with a login in its environment, or without; yield its port and the process."""
    inherited = {name: value for name, value in os.environ.items() if name != SERVER_LOGIN}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, answer, str(delay_s)],
        env=inherited | ({SERVER_LOGIN: login} if login else {}),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        try:
            with temporary_settings({PREFECT_SERVER_API_PORT: port}):
                yield port, process
        finally:
            process.kill()


def keep(home: Path, text: str = LOGIN, mode: int = 0o600) -> Path:
    """Write the file of the login."""
    home.mkdir(exist_ok=True)
    path = home / FILE_NAME
    path.write_text(f"{text}\n")
    path.chmod(mode)
    return path


def test_the_first_server_makes_a_login_that_only_its_owner_can_read(home: Path) -> None:
    old = os.umask(0)
    try:
        login = create_login()
    finally:
        os.umask(old)
    assert stat.S_IMODE((home / FILE_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert re.fullmatch(r"clickmill:[\w-]{43}", login)
    assert create_login() == stored_login() == login
    assert [path.name for path in home.iterdir()] == [FILE_NAME]
    assert len({make_login() for _ in range(100)}) == 100


def test_servers_that_start_at_once_agree_on_one_login(home: Path) -> None:
    """They are forked from a process of its own: this one has threads, and forks would wait."""
    environment = os.environ | {"PREFECT_HOME": str(home)}
    command = [sys.executable, "-c", START_AT_ONCE]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    logins = [line.split() for line in output.stdout.splitlines()]
    assert len(logins) == 8
    assert all(line == logins[0] for line in logins)
    assert len(set(logins[0])) == 10
    assert logins[0][-1] == stored_login()
    assert [path.name for path in home.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620])
def test_a_login_that_others_may_know_is_refused(home: Path, mode: int) -> None:
    path = keep(home, mode=mode)
    with pytest.raises(ConfigError, match=rf"{path}: other users have access .*rm {path}"):
        stored_login()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "words", "empty", "bytes"])
def test_what_is_no_login_is_refused_in_one_line(home: Path, kind: str) -> None:
    path = keep(home, {"words": "not a login", "empty": ""}.get(kind, LOGIN))
    if kind == "bytes":
        path.write_bytes(b"\xff:\xfe")
    elif kind not in ("words", "empty"):
        path.rename(home / "elsewhere")
    if kind == "link":
        path.symlink_to(home / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind == "folder":
        path.mkdir(0o700)
    with pytest.raises(ConfigError, match=rf"^{path}: .*; remove it \(rm {path}\)[^\n]*$"):
        stored_login()


def test_a_home_that_cannot_be_written_is_named_with_the_remedy(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(ConfigError, match=f"{home}/{FILE_NAME}: .*Not a directory"):
        create_login()


@pytest.mark.parametrize(
    ("answer", "delay_s", "is_used"),
    [('"3.4"', 2.0, True), ('"3.3"', 0.0, False), ("<html>", 0.0, False)],
)
def test_a_server_that_knows_the_login_is_used_if_it_has_our_version(
    home: Path, answer: str, delay_s: float, is_used: bool
) -> None:
    keep(home)
    with stranger_or_server(LOGIN, answer, delay_s) as (port, process):
        assert local_server("3.4") == (f"http://127.0.0.1:{port}/api" if is_used else None)
        assert process.stdout
        assert process.stdout.readline().startswith("/api/admin/version Basic ")
        if is_used:
            assert os.environ[CLIENT_LOGIN] == LOGIN


@pytest.mark.parametrize("login", [None, "clickmill:another", f"{LOGIN}x"])
def test_a_stranger_on_the_port_is_not_taken_for_the_server_and_gets_no_request(
    home: Path, login: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(home)
    with stranger_or_server(login) as (port, process):
        assert local_server("3.4") is None
        process.kill()
        output, _ = process.communicate()
    assert output == ""
    assert not os.environ[CLIENT_LOGIN]
    assert f"what listens on port {port} is not the Prefect server" in capsys.readouterr().err


def test_a_server_is_not_used_if_a_stranger_listens_on_its_port_at_another_address(
    home: Path,
) -> None:
    keep(home)
    with stranger_or_server(LOGIN) as (port, _):
        assert is_our_server(port, LOGIN)
        listen = "import socket, sys; s = socket.create_server(('127.0.0.2', int(sys.argv[1])));"
        with subprocess.Popen(
            [sys.executable, "-c", f"{listen} print(1, flush=True); sys.stdin.read()", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as stranger:
            assert stranger.stdout
            stranger.stdout.readline()
            assert not is_our_server(port, LOGIN)
            stranger.kill()


def test_the_login_of_the_environment_is_tried_before_that_of_the_file(home: Path) -> None:
    with stranger_or_server("ops:pass") as (port, _):
        assert login_of_server(port) is None
        keep(home)
        with temporary_settings({PREFECT_API_AUTH_STRING: "ops:pass"}):
            assert login_of_server(port) == "ops:pass"


def test_no_server_is_found_at_once_where_nothing_listens() -> None:
    port = free_port()
    assert listening_sockets(port) == set()
    assert not is_our_server(port, LOGIN)
    with temporary_settings({PREFECT_SERVER_API_PORT: port}):
        assert local_server("3.4") is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prefect", "server", "start"], True),
        (["prefect", "--no-prompt", "server", "start", "--port", "4300"], True),
        (["prefect", "worker", "start", "--name", "server"], False),
        (["prefect", "server", "status"], False),
    ],
)
def test_a_server_is_recognised_by_its_command(words: list[str], expected: bool) -> None:
    assert starts_server(words) is expected
