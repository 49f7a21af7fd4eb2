"""`clickmill nightly health --server` compares what a real server serves with production."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from flows.nightly.served_models import Server, served_fact
from serving.serving_bundle import read_serving_manifest
from tests.conftest import free_port
from tests.factories.serving_bundles import served_project

START_S = 60
TOKEN = "a-token-of-this-test"


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """Run a server, and yield its address when it answers."""
    port = free_port()
    code = "from flows.cli.main import app; app()"
    command = [sys.executable, "-c", code, "serve", "--port", str(port), *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    url, deadline_s = f"http://127.0.0.1:{port}", time.monotonic() + START_S
    try:
        while True:
            try:
                httpx.get(f"{url}/health", trust_env=False)
                break
            except httpx.HTTPError:
                assert process.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def version() -> str:
    return read_serving_manifest(served_project().serving).model_version


def test_a_server_of_the_model_in_production_is_no_problem(tmp_path: Path, version: str) -> None:
    folder = Path(shutil.copytree(served_project().serving, tmp_path / "model"))
    token_file = tmp_path / "token"
    token_file.touch(0o600)
    token_file.write_text(TOKEN)
    with serving("--model", f"production={folder}", "--token-file", str(token_file)) as url:
        server = Server(url, TOKEN)
        fact = f"{url} serves {version}"
        assert served_fact(server, version) == (fact, None)
        assert served_fact(server, "0" * 12) == (fact, f"{fact}, but {'0' * 12} is in production")
        nothing, problem = served_fact(Server(url), version)
        assert nothing is None
        assert problem == f"{url}: it asks for a token; give its file: --token-file"


def test_a_server_without_a_model_is_a_problem(tmp_path: Path, version: str) -> None:
    with serving("--model", f"production={tmp_path / 'nothing'}") as url:
        fact, problem = served_fact(Server(url), version)
        assert fact == f"{url} serves no model yet"
        assert problem is not None
        assert problem.startswith(f"{fact}, but {version} is in production (")
        assert "no serving bundle here" in problem
    with serving("--model", f"other={tmp_path / 'nothing'}") as url:
        reason = "it serves no model 'production', only other"
        assert served_fact(Server(url), version) == (None, f"{url}: {reason}")


def test_no_server_and_other_servers_are_problems(version: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    fact, problem = served_fact(Server(url), version)
    assert fact is None
    assert problem is not None
    assert problem.startswith(f"{url}: no answer (")
    for body, reason in (
        (b"<html>", "/ready is not JSON"),
        (b"[]", "/ready names no models"),
        (b'{"models": {"production": {"champion": {"version": 1}}}}', "/ready names no models"),
    ):
        with answering(body) as url:
            assert served_fact(Server(url), version) == (
                None,
                f"{url}: it is no server of clickmill: {reason}",
            )


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """Run a server of another kind, and yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
