"""A client of an ASGI application in the same process, without sockets."""

import asyncio
import json
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from serving.app import App
from serving.metrics import Metrics
from serving.options import ServeOptions

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """The answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its JSON value."""
        return json.loads(self.body)


def serve_options(models: Mapping[str, Path], **changes: Any) -> ServeOptions:
    """Return options with small limits."""
    values = {
        "models": models,
        "shadows": {},
        "canaries": {},
        "token": None,
        "max_body_bytes": 1 << 20,
        "max_rows": 100,
        "max_requests": 20,
        "access_log": False,
        "log_requests": None,
        "log_fraction": 1.0,
    }
    return ServeOptions(**values | changes)


class Client:
    """Sends requests to an application whose models are loaded."""

    def __init__(self, app: App, loop: asyncio.AbstractEventLoop) -> None:
        self.app = app
        self.loop = loop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the application's event loop."""
        return self.loop.run_until_complete(work)

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a request and return its answer."""
        return self.run(self.send(method, path, [body], headers))

    async def send(
        self,
        method: str,
        path: str,
        pieces: list[bytes],
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a request whose body comes in pieces; without a last piece, the client goes away."""
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": piece, "more_body": place + 1 < len(pieces)}
            for place, piece in enumerate(pieces)
        ] or [{"type": "http.disconnect"}]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def take(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
        }
        await self.app(scope, receive, take)
        if not sent:
            return Reply(0, {}, b"")
        start, end = sent
        got = {name.decode(): value.decode() for name, value in start["headers"]}
        assert int(got["content-length"]) == len(end["body"])
        return Reply(start["status"], got, end["body"])

    def post_json(self, path: str, value: object, **headers: str) -> Reply:
        """Send a JSON value."""
        headers = {"content-type": "application/json", **headers}
        return self.request("POST", path, json.dumps(value).encode(), headers)

    def post_lines(self, path: str, lines: list[str], **headers: str) -> Reply:
        """Send lines of a log."""
        body = "".join(f"{line}\n" for line in lines).encode()
        return self.request("POST", path, body, {"content-type": "text/plain", **headers})

    def get(self, path: str, **headers: str) -> Reply:
        """Send a GET."""
        return self.request("GET", path, b"", headers)

    def refresh(self) -> None:
        """Look at the paths of all models now."""
        for service in self.app.services.values():
            for role, source in service.sources:
                self.run(self.app.refresh(service.name, role, source))

    def metric(self, name: str, **labels: str) -> float | None:
        """Return a sample of /metrics."""
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(self.get("/metrics").body.decode()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return None


@contextmanager
def client_of(options: ServeOptions) -> Iterator[Client]:
    """Start an application and stop it again."""
    loop = asyncio.new_event_loop()
    app = App(options, Metrics(), None)
    try:
        loop.run_until_complete(app.start())
        yield Client(app, loop)
        loop.run_until_complete(app.stop())
    finally:
        loop.close()
