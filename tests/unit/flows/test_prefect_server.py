"""The Prefect server of a run: the temporary one, and messages about the configured one."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from common.config.loading import ConfigError
from flows.adapters import prefect_server
from flows.prefect_login import credentials
from flows.prefect_server import ensure_server
from tests.conftest import free_port
from tests.factories.support import answer_with, serving, still_running, wait_for

START_AND_WAIT = """
from flows.prefect_server import start_server
wait = start_server()
print("started", flush=True)
wait()
print("ready", flush=True)
input()
"""


@pytest.fixture(scope="module")
def temporary() -> Iterator[prefect_server.TemporaryServer]:
    """A temporary server that answers."""
    server = prefect_server.TemporaryServer()
    server.wait()
    yield server
    server.stop()


def test_a_temporary_server_takes_orders_only_with_its_login(
    temporary: prefect_server.TemporaryServer,
) -> None:
    """A web page has another Origin, and does not know the login."""
    origin = {"Origin": "http://evil.example"}
    url = f"{temporary.url}/flows/"
    refused = [
        httpx.post(url, json={"name": "evil"}, headers=origin),
        # a page may send this without asking first, and Prefect would read it as JSON
        httpx.post(url, content=b'{"name": "evil"}', headers=origin),
        httpx.post(url, json={"name": "evil"}, auth=("clickmill", "guess")),
    ]
    assert {answer.status_code for answer in refused} == {httpx.codes.UNAUTHORIZED}
    question = {"Access-Control-Request-Method": "POST"} | origin
    allowed = httpx.options(url, headers=question).headers
    assert "access-control-allow-origin" not in allowed
    login = credentials(temporary.login)
    assert httpx.post(url, json={"name": "good"}, auth=login).is_success
    assert httpx.get(f"{url}name/evil", auth=login).status_code == httpx.codes.NOT_FOUND


def test_the_login_of_a_temporary_server_is_on_no_command_line(
    temporary: prefect_server.TemporaryServer,
) -> None:
    process = psutil.Process(temporary.process.pid)
    assert temporary.login not in " ".join(process.cmdline())
    assert temporary.login.partition(":")[2] not in " ".join(process.cmdline())
    assert process.environ()["PREFECT_SERVER_API_AUTH_STRING"] == temporary.login


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 1.0, None])
def test_a_killed_process_leaves_no_temporary_server(delay_s: float | None, tmp_path: Path) -> None:
    """The process is killed while the server starts, or (None) when it answers."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    own = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_API_PORT": str(free_port())}
    with subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT],
        env=inherited | own,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        parent = psutil.Process(process.pid)
        if delay_s == 0:
            wait_for(parent.children)  # the server's process exists, and no more
        else:
            assert process.stdout
            assert "started\n" in process.stdout
            if delay_s is None:
                assert "ready\n" in process.stdout
            time.sleep(delay_s or 0)
        servers = parent.children(recursive=True)
        process.kill()
    assert servers
    assert still_running(servers, 10) == []


def test_a_temporary_server_that_does_not_start_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wait is announced, the error has no traceback on the command line, no process is left."""
    monkeypatch.setattr(prefect_server, "START_WITHIN_S", 1)
    monkeypatch.setattr(prefect_server, "SAY_AFTER_S", 0.2)
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(prefect_server, "COMMAND", silent)
    server = prefect_server.TemporaryServer()
    with pytest.raises(
        ConnectionError,
        match="did not start: it did not answer within 1 s; run `prefect server start` in another terminal",
    ):
        server.wait()
    assert server.process.poll() is not None
    assert "waiting up to 1 s for Prefect's temporary server" in capsys.readouterr().out


def test_a_temporary_server_that_ends_is_reported_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefect_server, "COMMAND", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(
        ConnectionError, match="did not start: it exited with 3; run `prefect server start`"
    ):
        prefect_server.TemporaryServer().wait()


@pytest.mark.parametrize("path", ["/api", ""])
def test_the_password_of_a_configured_server_is_masked(path: str) -> None:
    url = f"http://bob:s3cret@127.0.0.1:{free_port()}{path}"
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(ConnectionError, match=r"PREFECT_API_URL is http://\*\*\*@127") as raised,
    ):
        ensure_server()
    assert "s3cret" not in str(raised.value)
    assert "bob" not in str(raised.value)


def test_a_server_that_refuses_the_login_is_one_line_with_the_remedy() -> None:
    with (
        serving(answer_with(b"{}", status=401)) as port,
        temporary_settings(
            {PREFECT_API_URL: f"http://127.0.0.1:{port}/api", PREFECT_API_AUTH_STRING: "a:s3cret"}
        ),
        pytest.raises(ConfigError, match=r"answered 401 .*; set PREFECT_API_AUTH_STRING") as raised,
    ):
        ensure_server()
    assert "s3cret" not in str(raised.value)


def test_a_signal_to_the_group_of_the_flow_does_not_reach_the_server(
    temporary: prefect_server.TemporaryServer,
) -> None:
    """A flow that is stopped reports its end to the server, and waited minutes without one."""
    assert os.getpgid(temporary.process.pid) != os.getpgid(0)
