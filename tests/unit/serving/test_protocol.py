"""The limits of a connection, over real sockets: slow clients, large heads, pipelines, draining."""

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from uvicorn.server import Server

from serving import protocol
from serving.app import App
from serving.metrics import Metrics
from serving.worker import WorkerServer, make_config
from tests.factories.asgi import serve_options
from tests.factories.support import wait_for
from tests.factories.tiny_serving_bundles import lines, write_serving_bundle

HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
BODY = f"{lines(1)[0]}\n".encode()
HEAD = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n"
SCORE = HEAD % len(BODY) + BODY


class Running:
    """A server in a thread of this process."""

    def __init__(self, app: App) -> None:
        self.server = Server(make_config(app))
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.thread = threading.Thread(target=self.server.run, args=([listener],))
        self.thread.start()
        wait_for(lambda: self.server.started, 30)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def ask(self, data: bytes) -> bytes:
        with self.connect() as client:
            client.sendall(data)
            return read_answer(client)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protocol")
    write_serving_bundle(folder / "1.serving", 1)
    return folder


@pytest.fixture
def running(folder: Path) -> Iterator[Running]:
    running = Running(App(serve_options({"production": folder / "1"}), Metrics(), None))
    yield running
    running.stop()


def read_answer(client: socket.socket) -> bytes:
    """Return the bytes of one answer, or those that came before the connection was closed."""
    data = b""
    while True:
        head, found, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if found and length and len(body) >= int(length[1]):
            return data
        piece = client.recv(65536)
        if not piece:
            return data
        data += piece


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_request_is_answered_over_a_socket(running: Running) -> None:
    answer = running.ask(SCORE)
    assert status_of(answer) == 200
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["version"] == f"{1:012x}"


@pytest.mark.parametrize("begin", [b"", b"GET /hea", HEALTH[:-2], HEAD % 100, HEAD % 100 + b"half"])
def test_a_client_that_stops_in_its_request_is_closed(
    running: Running, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(protocol, "RECEIVE_TIMEOUT_S", 0.3)
    with running.connect() as client:
        client.sendall(begin)
        answer = read_answer(client)
        assert is_closed(client)
    assert answer == b"" if not begin else status_of(answer) == 408
    assert status_of(running.ask(HEALTH)) == 200


@pytest.mark.parametrize("begin", [SCORE[:30], SCORE[:-3]])
def test_a_client_that_stops_in_a_later_request_is_closed(
    running: Running, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(protocol, "RECEIVE_TIMEOUT_S", 0.3)
    with running.connect() as client:
        client.sendall(SCORE)
        assert status_of(read_answer(client)) == 200
        time.sleep(0.5)  # between two requests there is no such limit
        client.sendall(begin)
        assert status_of(read_answer(client)) == 408
        assert is_closed(client)


def test_a_client_that_sends_a_byte_now_and_then_is_closed_too(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "RECEIVE_TIMEOUT_S", 0.5)
    begin_s = time.monotonic()
    with running.connect() as client:
        client.sendall(HEAD % 100)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_slowly(client, 5)
    assert time.monotonic() - begin_s < 3


def send_slowly(client: socket.socket, seconds: float) -> None:
    """Send a byte ten times a second."""
    for _ in range(int(10 * seconds)):
        client.sendall(b"x")
        time.sleep(0.1)


def test_a_client_in_time_is_not_closed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "RECEIVE_TIMEOUT_S", 2)
    with running.connect() as client:
        for _ in range(4):  # each request has its own time
            client.sendall(SCORE[:50])
            time.sleep(0.6)
            client.sendall(SCORE[50:])
            assert status_of(read_answer(client)) == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nx: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nx: " + b"y" * 2_000_000,
        b"GET /" + b"y" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 10_000 + b"\r\n",
    ],
)
def test_a_large_head_is_431(running: Running, head: bytes) -> None:
    with running.connect() as client:
        try:
            client.sendall(head)
        except OSError:
            return  # it was closed before we had sent everything
        try:
            answer = read_answer(client)
        except ConnectionResetError:
            return
        assert not answer or status_of(answer) == 431
    assert status_of(running.ask(HEALTH)) == 200


def test_a_head_just_above_the_limit_is_431_and_below_is_answered(running: Running) -> None:
    for size, status in ((protocol.MAX_HEAD_BYTES + 1, 431), (15_000, 200)):
        request = b"GET /health HTTP/1.1\r\nx: " + b"y" * size + b"\r\n\r\n"
        assert status_of(running.ask(request)) == status


UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"


@pytest.mark.parametrize("cut", [len(HEAD) - 4, len(HEAD) + len(UPGRADE), -1, 10_000])
def test_an_offer_to_change_to_http2_loses_no_body(running: Running, cut: int) -> None:
    request = SCORE.replace(b"host: x\r\n", b"host: x\r\n" + UPGRADE)
    with running.connect() as client:
        client.sendall(request[:cut])
        time.sleep(0.05)
        client.sendall(request[cut:])
        assert status_of(read_answer(client)) == 200
        client.sendall(SCORE)
        assert status_of(read_answer(client)) == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    ],
)
def test_what_is_not_http_is_400_as_json(running: Running, data: bytes) -> None:
    answer = running.ask(data)
    assert status_of(answer) == 400
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_too_many_connections_are_503(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol.LimitedProtocol, "max_connections", 3)
    clients = [running.connect() for _ in range(3)]
    for client in clients:
        client.sendall(HEALTH)
        assert status_of(read_answer(client)) == 200
    with running.connect() as one_more:
        answer = read_answer(one_more)
        assert status_of(answer) == 503
        assert b"retry-after: 1" in answer
    for client in clients:
        client.sendall(HEALTH)
        assert status_of(read_answer(client)) == 200
        client.close()


def test_pipelined_requests_are_answered_in_order_and_not_without_end(running: Running) -> None:
    with running.connect() as client:
        client.sendall(SCORE + HEALTH)
        both = read_answer(client)
        while both.count(b"HTTP/1.1 200") < 2:
            both += client.recv(65536)
        assert both.index(b"scores") < both.index(b"live")
    with running.connect() as client:
        client.sendall(HEALTH * 5000)
        data = b""
        try:
            while piece := client.recv(65536):
                data += piece
        except ConnectionResetError:
            pass
    assert data.count(b"HTTP/1.1 200") < 5000
    assert status_of(running.ask(HEALTH)) == 200


def test_a_client_that_does_not_read_is_disconnected(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "SEND_TIMEOUT_S", 0.3)
    monkeypatch.setattr(protocol, "MAX_PIPELINED", 10_000)
    with running.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 3000)  # about 15 MB of answers
        assert client.recv(1) == b"H"
        wait_for(lambda: not running.server.server_state.connections, 10)
    assert status_of(running.ask(HEALTH)) == 200


def refuses_connections(running: Running) -> bool:
    try:
        running.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_stop_finishes_what_was_accepted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CLOSE_IDLE_S", 10)
    running = Running(App(serve_options({"production": folder / "1"}), Metrics(), None))
    half, idle = running.connect(), running.connect()
    idle.sendall(HEALTH)
    assert status_of(read_answer(idle)) == 200
    half.sendall(SCORE[:-5])
    wait_for(lambda: len(running.server.server_state.tasks) == 1, 5)
    running.server.should_exit = True
    wait_for(lambda: refuses_connections(running), 10)
    idle.sendall(SCORE)  # it was on its way
    for client in (idle, half):
        if client is half:
            client.sendall(SCORE[-5:])
        answer = read_answer(client)
        assert status_of(answer) == 200
        assert b"connection: close" in answer
        assert is_closed(client)
    running.thread.join(5)
    assert not running.thread.is_alive()


def test_a_second_signal_does_not_keep_a_worker_from_finishing(folder: Path) -> None:
    app = App(serve_options({"production": folder / "1"}), Metrics(), None)
    server = WorkerServer(make_config(app))
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        server.handle_exit(each, None)
    assert server.should_exit
    assert not server.force_exit
