"""The Prefect server that flows report to: the configured one, or a temporary one."""

import os

import httpx
from prefect.settings import get_current_settings

from flows.adapters.prefect_server import start_temporary_server

ANSWER_WITHIN_S = 30.0  # as long as Prefect itself waits for a busy server


def ensure_server() -> str:
    """Return the URL of the server that flows report to; start a temporary one if need be.

    Raises:
        ConnectionError: The configured server does not answer, or the temporary one does not start.
    """
    url = get_current_settings().api.url
    if url is None:
        url = start_temporary_server()
        os.environ["PREFECT_API_URL"] = url  # flows in child processes report to it too
        return url
    try:
        httpx.get(f"{url}/health", timeout=ANSWER_WITHIN_S)
    except httpx.TransportError as error:
        raise ConnectionError(
            f"PREFECT_API_URL is {url}, where no server answers ({error}); start it "
            "(prefect server start), or use a temporary one: prefect config unset PREFECT_API_URL"
        ) from None
    return url
