"""The options of `clickmill serve`, and the limits that protect it."""

import re
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

from pydantic import Field

from common.config.base import Fraction, Positive, Strict
from common.config.loading import ConfigError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")

# Limits of a worker. They bound its memory whatever clients do.
MAX_HEAD_BYTES = 16 << 10  # of the request line and the headers
MAX_CONNECTIONS = 10_000
BACKLOG = 2048  # connections that the kernel takes until a worker accepts them
MAX_PIPELINED = 32  # requests of one connection that wait for the answer to an earlier one
MAX_BYTES_AT_WORK = 64 << 20  # of the bodies of all requests at work; as Python objects they are
# several times as large
RECEIVE_TIMEOUT_S = 30.0  # from the first byte of a request to its last one
SEND_TIMEOUT_S = 30.0  # for a client that does not read its answers
KEEP_ALIVE_S = 75  # longer than the usual 60 s of load balancers, which close first then
CLOSE_IDLE_S = 1.0  # after SIGTERM, a request on an open connection is still answered
DRAIN_S = 20  # after SIGTERM, for the requests that were accepted
POLL_S = 1.0  # between two looks at the paths of the models
FIRST_LOAD_S = 60.0  # a worker that starts takes no connections until its models are loaded
# The variable in which prometheus-client finds the folder where workers count.
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
COPY_PREFIX = "clickmill-serve-"  # of a worker's private folders; its process id comes next
MAX_SHADOW_REQUESTS = 256  # that wait for a shadow; more are not compared
MAX_SHADOW_BYTES = 16 << 20  # of their bodies


class Canary(Strict):
    """A model that answers some of the requests.

    Attributes:
        path: Where it is.
        fraction: The fraction of the requests that it answers.
    """

    path: Path
    fraction: Fraction


class LogRequests(Strict):
    """A sample of the requests that is kept, to be joined with labels later.

    Attributes:
        directory: The folder of the request log.
        fraction: The fraction of the requests to log.
        key: The column by which a row will find its label; null: the id of the request.
    """

    directory: Path
    fraction: Annotated[float, Field(gt=0, le=1)]
    key: str | None


class ServeOptions(Strict):
    """The options of a server; a worker gets them as JSON.

    Attributes:
        models: The name of each model and the path it is read from. The first one answers /score.
        shadows: Models that score the requests of the model of their name, after the answer.
        canaries: Models that answer a fraction of the requests of the model of their name.
        token: What a client must send as `Authorization: Bearer TOKEN`; null if nothing.
        max_body_bytes: The largest body of a request.
        max_rows: The largest number of rows of a request.
        max_requests: The largest number of requests that a worker receives or scores at a time.
        access_log: Whether each request is logged.
        log_requests: The request log; null: none is written.
    """

    models: Annotated[dict[str, Path], Field(min_length=1)]
    shadows: dict[str, Path]
    canaries: dict[str, Canary]
    token: str | None = Field(repr=False)
    max_body_bytes: Positive
    max_rows: Positive
    max_requests: Positive
    access_log: bool
    log_requests: LogRequests | None


class WorkerOptions(Strict):
    """The options that a server passes to a worker.

    Attributes:
        serve: The options of the server.
        socket: The descriptor of the socket to listen on.
        parent: The process id of the server.
    """

    serve: ServeOptions
    socket: int
    parent: int


def parse_models(texts: list[str], option: str) -> dict[str, Path]:
    """Return the paths of models by name, of texts such as `production=artifacts/production`.

    Raises:
        ConfigError: A text is not of this form, or two have the same name.
    """
    paths: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path or not NAME.fullmatch(name):
            raise ConfigError(
                f"{option} {text}: NAME=PATH expected, such as production=artifacts/production; a"
                " name has up to 64 letters, digits and . _ -"
            )
        if name in paths:
            raise ConfigError(f"{option} {text}: there is another {option} of this name")
        paths[name] = Path(path)
    return paths


def parse_canaries(texts: list[str]) -> dict[str, Canary]:
    """Return canaries by name, of texts such as `production=artifacts/next.serving:0.05`.

    Raises:
        ConfigError: A text is not of this form, or two have the same name.
    """
    canaries = {}
    for text in texts:
        model, _, number = text.rpartition(":")
        try:
            fraction = float(number)
        except ValueError:
            fraction = -1.0
        if not model or not 0 < fraction < 1:
            raise ConfigError(
                f"--canary {text}: NAME=PATH:FRACTION expected, with a fraction between 0 and 1,"
                " such as production=artifacts/next.serving:0.05"
            )
        for name, path in parse_models([model], "--canary").items():
            if name in canaries:
                raise ConfigError(f"--canary {text}: there is another --canary of this name")
            canaries[name] = Canary(path=path, fraction=fraction)
    return canaries


def log_requests_of(directory: Path | None, fraction: float, key: str | None) -> LogRequests | None:
    """Return the request log that the options name; None if they name none.

    Raises:
        ConfigError: The fraction is no share, or there is a key without a folder.
    """
    if directory is None:
        if key is not None:
            raise ConfigError(f"--log-key {key}: name the folder too (--log-requests DIR)")
        return None
    if not 0 < fraction <= 1:
        raise ConfigError(f"--log-fraction {fraction}: a share above 0 and up to 1 expected")
    return LogRequests(directory=directory, fraction=fraction, key=key)


def check_challengers(options: ServeOptions) -> None:
    """Check that each challenger has a champion.

    Raises:
        ConfigError: A shadow or a canary has a name that no model has.
    """
    for option, names in (("--shadow", options.shadows), ("--canary", options.canaries)):
        for name in names:
            if name not in options.models:
                known = ", ".join(options.models)
                raise ConfigError(f"{option} {name}=...: no model of this name; known: {known}")


def prepare_log_folder(folder: Path) -> None:
    """Make the folder of the request log, and check that files can be written into it.

    Raises:
        ConfigError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"--log-requests {folder}: {error.strerror}; name a folder that the server can write to"
        ) from None
