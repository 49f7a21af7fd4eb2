"""The models that servers really serve, as their page /ready reports them."""

from dataclasses import dataclass
from typing import Annotated, Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.printable import first_line, printable
from flows.nightly.record import PRODUCTION

TIMEOUT_S = 5
SERVED_NAME = PRODUCTION.name  # the model that follows the link artifacts/production


@dataclass(frozen=True)
class Server:
    """A server of `clickmill serve`.

    Attributes:
        url: Its address, such as http://127.0.0.1:8000.
        token: The token that its clients send; None if it asks for none.
    """

    url: str
    token: str | None = None


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Source(_Read):
    version: Annotated[str, Field(max_length=100)] | None
    fault: str | None


class _Roles(_Read):
    champion: _Source


class _Ready(_Read):
    models: dict[str, _Roles]


class ServerError(Exception):
    """A server does not say what it serves; the message says why."""


def served_fact(server: Server, expected: str) -> tuple[str | None, str | None]:
    """Ask a server which model it serves.

    Args:
        server: The server.
        expected: The model version in production.

    Returns:
        What it serves, in one line, None if nobody can tell; and what is wrong, None if nothing is.
    """
    try:
        source = _read_source(server)
    except ServerError as error:
        return None, f"{server.url}: {error}"
    fact = f"{server.url} serves {source.version or 'no model yet'}"
    if source.version is None or source.version.partition("-")[0] != expected:
        fault = f" ({printable(source.fault)})" if source.fault else ""
        return fact, f"{fact}, but {expected} is in production{fault}"
    return fact, f"{fact}: {printable(source.fault)}" if source.fault else None


def _read_source(server: Server) -> _Source:
    headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
    try:
        answer = httpx.get(
            f"{server.url.rstrip('/')}/ready", headers=headers, timeout=TIMEOUT_S, trust_env=False
        )
        value: Any = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerError(
            f"no answer ({first_line(error) or type(error).__name__}); is it running?"
        ) from None
    except ValueError:
        raise ServerError("it is no server of clickmill: /ready is not JSON") from None
    if isinstance(value, dict) and "ready" in value and "models" not in value:
        raise ServerError("it asks for a token; give its file: --token-file")
    try:
        models = _Ready.model_validate(value).models
    except ValidationError:
        raise ServerError("it is no server of clickmill: /ready names no models") from None
    if SERVED_NAME not in models:
        names = ", ".join(map(printable, models)) or "none"
        raise ServerError(f"it serves no model {SERVED_NAME!r}, only {names}")
    return models[SERVED_NAME].champion
