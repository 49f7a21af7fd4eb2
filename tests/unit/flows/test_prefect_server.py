"""The Prefect server: one on this machine is found, and a failed start is reported."""

import sys
import time

import pytest
from prefect.settings import PREFECT_SERVER_API_PORT, temporary_settings

from flows.adapters import prefect_server
from flows.prefect_plugin import local_server
from tests.conftest import free_port
from tests.factories.support import answer_with, serving


@pytest.mark.parametrize(
    ("answer", "delay_s", "is_used"),
    [(b'"3.4"', 2.0, True), (b'"3.3"', 0.0, False), (b"<html>", 0.0, False)],
)
def test_a_server_is_used_only_if_it_has_our_version(
    answer: bytes, delay_s: float, is_used: bool
) -> None:
    with (
        serving(answer_with(answer, delay_s=delay_s)) as port,
        temporary_settings({PREFECT_SERVER_API_PORT: port}),
    ):
        assert local_server("3.4") == (f"http://127.0.0.1:{port}/api" if is_used else None)


def test_no_server_is_found_at_once_where_nothing_listens() -> None:
    started_s = time.monotonic()
    with temporary_settings({PREFECT_SERVER_API_PORT: free_port()}):
        assert local_server("3.4") is None
    assert time.monotonic() - started_s < 5


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
