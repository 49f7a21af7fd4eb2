"""The HTTP protocol of uvicorn with limits: slow clients, large heads, too many connections.

An application sees a request when its head is complete, so these limits are below it.
"""

import asyncio
import sys

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.http import JSON
from serving.options import (
    CLOSE_IDLE_S,
    MAX_CONNECTIONS,
    MAX_HEAD_BYTES,
    MAX_PIPELINED,
    RECEIVE_TIMEOUT_S,
    SEND_TIMEOUT_S,
)


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    - A request that is not complete in RECEIVE_TIMEOUT_S is refused with 408, and the connection is
      closed. So is a connection whose client sends nothing.
    - A head of more than MAX_HEAD_BYTES is refused with 431.
    - A client that does not read its answers for SEND_TIMEOUT_S is disconnected.
    - More than `max_connections` are refused with 503.
    """

    max_connections = MAX_CONNECTIONS  # or fewer, where fewer files may be open
    receive_timeout: asyncio.TimerHandle | None = None
    send_timeout: asyncio.TimerHandle | None = None
    data = b""
    in_head = True
    head_bytes = 0
    stops = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the connection if there are too many."""
        super().connection_made(transport)
        self._expect_request()
        if len(self.connections) > self.max_connections:
            self._refuse(503, f"more than {self.max_connections:,} connections; try later")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        super().connection_lost(exc)
        self._cancel_timers()

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        if self.receive_timeout is None and self.in_head:
            self._expect_request()
        if self.in_head:
            self.head_bytes += len(data)
        self.data = data
        super().data_received(data)
        if self.in_head and self.head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        """Begin to answer a request, unless its head is too large."""
        if self.parser.should_upgrade():
            return
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        self.in_head, self.head_bytes = False, 0
        if size > MAX_HEAD_BYTES:
            self._refuse_head()
            return
        super().on_headers_complete()
        if self.stops:
            self.cycle.keep_alive = False
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()  # an error would be taken for the answer to an earlier request

    def on_message_complete(self) -> None:
        """Note that a request is complete."""
        if self.parser.should_upgrade():
            return
        self.in_head = True
        if self.receive_timeout:
            self.receive_timeout.cancel()
            self.receive_timeout = None
        if self.transport.is_closing():
            return
        super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        if not self.transport.is_closing():
            super().on_body(body)

    def pause_writing(self) -> None:
        """Note that the client does not read its answer."""
        super().pause_writing()
        if self.send_timeout is None:
            self.send_timeout = self.loop.call_later(SEND_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it does."""
        super().resume_writing()
        if self.send_timeout:
            self.send_timeout.cancel()
            self.send_timeout = None

    def shutdown(self) -> None:
        """Close the connection soon: a request that is on its way to us is answered before."""
        self.stops = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(CLOSE_IDLE_S, super().shutdown)
        else:
            super().shutdown()

    def _unsupported_upgrade_warning(self) -> None:
        """Read a request that offers to change to another protocol again, without this offer.

        Some clients send the header `Upgrade: h2c` with each first request. httptools takes what
        follows such a head for data of the other protocol, so the body would be lost.
        """
        offer = sys.exc_info()[1]
        method, version = self.parser.get_method(), self.parser.get_http_version()
        others = [(name, value) for name, value in self.headers if name != b"upgrade"]
        if not isinstance(offer, httptools.HttpParserUpgrade) or len(others) == len(self.headers):
            self.send_400_response("")  # CONNECT, which has no such header
            return
        head = [b"%s %s HTTP/%s\r\n" % (method, self.url, version.encode())]
        head += [b"%s: %s\r\n" % header for header in others]
        self.parser = httptools.HttpRequestParser(self)
        super().data_received(b"".join([*head, b"\r\n", self.data[offer.args[0] :]]))

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(400, "this is not HTTP/1.1")

    def _expect_request(self) -> None:
        self.receive_timeout = self.loop.call_later(RECEIVE_TIMEOUT_S, self._too_slow)

    def _too_slow(self) -> None:
        self.receive_timeout = None
        if self.in_head and not self.head_bytes:
            self.transport.close()
        else:
            self._refuse(408, f"the request was not complete after {RECEIVE_TIMEOUT_S:.0f} s")

    def _refuse_head(self) -> None:
        self._refuse(431, f"the head of the request has more than {MAX_HEAD_BYTES:,} bytes")

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error and close the connection, unless an answer has begun."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = orjson.dumps({"error": message})
            head = [
                STATUS_LINE[status],
                b"content-type: " + JSON + b"\r\n",
                b"content-length: %d\r\n" % len(body),
                b"retry-after: 1\r\n" if status == 503 else b"",
                b"connection: close\r\n\r\n",
            ]
            self.transport.write(b"".join([*head, body]))
        self.transport.close()

    def _cancel_timers(self) -> None:
        for timer in (self.receive_timeout, self.send_timeout):
            if timer:
                timer.cancel()
