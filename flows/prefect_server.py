"""The Prefect server that flows report to: the configured one, or a temporary one."""

import os
from collections.abc import Callable
from typing import NamedTuple

import httpx
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings

from common.config.loading import ConfigError
from common.masking import mask_passwords
from flows.adapters.prefect_server import TemporaryServer
from flows.prefect_login import CLIENT_LOGIN, credentials, value_of

ANSWER_WITHIN_S = 30.0  # as long as Prefect itself waits for a busy server


def ensure_server() -> str:
    """Return the URL of the server that flows report to; start a temporary one if need be.

    Raises:
        ConfigError: The configured server refuses the login.
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
        # Flows in child processes report to it too.
        os.environ |= {"PREFECT_API_URL": server.url, CLIENT_LOGIN: server.login}
        refresh_global_settings_context()  # for the flows of this process
        return server.url

    return wait


def _check(url: str) -> str:
    fault = find_fault(url, ANSWER_WITHIN_S)
    if fault:
        error = ConfigError if fault.is_login else ConnectionError
        raise error(f"{fault.text}; {fault.remedy}")
    return url


class Fault(NamedTuple):
    """A fault of a server.

    Attributes:
        text: What was found. A password in the URL is masked.
        remedy: What to do about it.
        is_login: The server refuses the login.
    """

    text: str
    remedy: str
    is_login: bool = False


def find_fault(url: str, within_s: float) -> Fault | None:
    """Return what is wrong with the server at this URL, None if flows can report to it."""
    shown = mask_passwords(url)
    login = value_of(get_current_settings().api.auth_string)
    try:
        answer = httpx.get(
            f"{url}/admin/version", auth=credentials(login) if login else None, timeout=within_s
        )
    except (httpx.TransportError, httpx.InvalidURL) as error:
        return Fault(
            f"PREFECT_API_URL is {shown}, where no server answers ({mask_passwords(str(error))})",
            "start it (prefect server start), or use a temporary one: "
            "prefect config unset PREFECT_API_URL",
        )
    text = f"the Prefect server at {shown} answered {answer.status_code} {answer.reason_phrase}"
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return Fault(text, f"set {CLIENT_LOGIN} to the server's value", is_login=True)
    if answer.is_server_error:
        return Fault(text, "try again when it is less busy, or see the server's log")
    return None


def answers_without_login(url: str, within_s: float) -> bool:
    """Return whether the server at this URL takes orders from anybody."""
    try:
        anonymous = httpx.URL(f"{url}/admin/version").copy_with(userinfo=b"")
        return httpx.get(anonymous, timeout=within_s).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
