"""The Prefect server that flows report to: the configured one, or a temporary one."""

import os
from collections.abc import Callable

import httpx
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings

from flows.adapters.prefect_server import TemporaryServer

ANSWER_WITHIN_S = 30.0  # as long as Prefect itself waits for a busy server


def ensure_server() -> str:
    """Return the URL of the server that flows report to; start a temporary one if need be.

    Raises:
        ConnectionError: The configured server does not answer, or the temporary one does not start.
    """
    return start_server()()


def start_server() -> Callable[[], str]:
    """Start a temporary server if need be, without waiting for it, and return how to wait.

    Returns:
        A function that waits until the server answers, and returns its URL. It raises what
        `ensure_server` raises.
    """
    url = get_current_settings().api.url
    if url is not None:
        return lambda: _check(url)
    server = TemporaryServer()

    def wait() -> str:
        server.wait()
        os.environ["PREFECT_API_URL"] = server.url  # flows in child processes report to it too
        refresh_global_settings_context()  # for the flows of this process
        return server.url

    return wait


def _check(url: str) -> str:
    try:
        httpx.get(f"{url}/health", timeout=ANSWER_WITHIN_S)
    except httpx.TransportError as error:
        raise ConnectionError(
            f"PREFECT_API_URL is {url}, where no server answers ({error}); start it "
            "(prefect server start), or use a temporary one: prefect config unset PREFECT_API_URL"
        ) from None
    return url
