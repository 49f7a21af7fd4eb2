"""Requests and answers in plain ASGI: bodies of bounded size, JSON, and errors as JSON."""

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from common.printable import printable

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = b"application/json"
REQUEST_ID = b"x-request-id"
MAX_ID_CHARS = 128
MAX_QUOTED_CHARS = 100  # of what a client sent, in an error or in the log
RETRY: Headers = [(b"retry-after", b"1")]
# orjson rounds integers of more than 64 bits to a float. 2^63 has 19 digits.
LONG_NUMBER = b"0" * 19
DIGITS_AS_ZEROS = bytes(ord("0") if chr(byte).isdigit() else ord(" ") for byte in range(128)) + (
    b" " * 128
)


class HttpError(Exception):
    """An answer that says why there is no other.

    Args:
        status: The status code.
        message: What is wrong, and what to do.
        headers: More headers of the answer.
        details: More keys of the JSON object.
    """

    def __init__(
        self,
        status: int,
        message: str,
        headers: Headers | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or []
        self.details = details or {}


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


@dataclass
class Answer:
    """An answer, and what the log and the metrics say of it.

    Attributes:
        status: The status code.
        body: The body.
        content_type: Its type.
        headers: More headers.
        version: The version of the model that answered.
        role: What this model does here.
        num_rows: The number of rows of the request.
        num_bad: How many of them are malformed.
        after: What to do when the answer is sent.
    """

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: Headers = field(default_factory=list)
    version: str | None = None
    role: str | None = None
    num_rows: int = 0
    num_bad: int = 0
    after: Callable[[], None] | None = None

    @classmethod
    def of_error(cls, error: HttpError) -> "Answer":
        """Return the answer that tells a client of an error."""
        body = orjson.dumps({"error": error.message, **error.details})
        return cls(error.status, body, headers=error.headers)

    async def send(self, send: Send, request_id: bytes | None) -> None:
        """Send the answer, with the id of the request if the client gave one."""
        headers = [
            (b"content-type", self.content_type),
            (b"content-length", b"%d" % len(self.body)),
            *self.headers,
        ]
        if request_id is not None:
            headers.append((REQUEST_ID, request_id))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def id_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the id that the client gave its request; None if it gave none that can be logged."""
    text = headers.get(REQUEST_ID)
    if text is None or not 0 < len(text) <= MAX_ID_CHARS or not text.isascii():
        return None
    return text if text.decode().isprintable() else None


def media_type_of(headers: Mapping[bytes, bytes]) -> str:
    """Return the type of a request's body, without parameters, in small letters."""
    text = headers.get(b"content-type", b"").partition(b";")[0]
    return text.strip().lower().decode("latin-1")


def length_of(headers: Mapping[bytes, bytes]) -> int:
    """Return the length of the body that the head of a request announces; 0 if it has none."""
    text = headers.get(b"content-length", b"0")
    return int(text) if text.isdigit() and len(text) < 20 else 0


async def read_body(receive: Receive, max_bytes: int, take: Callable[[int], None]) -> bytes:
    """Return the body of a request.

    Args:
        receive: The receiver of ASGI.
        max_bytes: Its largest size.
        take: It is called with the size of each piece, and may raise an error.

    Raises:
        HttpError: The body is larger.
        ClientGoneError: The client closed the connection.
    """
    pieces: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        piece = message.get("body", b"")
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise too_large(max_bytes)
        take(len(piece))
        pieces.append(piece)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def too_large(max_bytes: int) -> HttpError:
    """Return the error of a body that is too large."""
    return HttpError(
        413, f"the body has more than {max_bytes:,} bytes; send fewer rows in each request"
    )


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text.

    NaN, infinite numbers and texts that are no Unicode are no JSON. The last one of several equal
    keys counts. Integers of any size keep their digits.

    Raises:
        HttpError: It is no JSON, or it is nested too deeply.
    """
    try:
        value = orjson.loads(body)
        # To search a regular expression would take longer than to parse the text.
        return json.loads(body) if LONG_NUMBER in body.translate(DIGITS_AS_ZEROS) else value
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the body is not JSON: {shown(str(error))}") from None


def shown(text: str) -> str:
    """Return what a client sent as a short line that can be printed."""
    text = printable(text[: MAX_QUOTED_CHARS + 1])
    return text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}..."
