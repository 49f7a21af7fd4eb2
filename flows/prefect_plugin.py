"""A plugin for Prefect's own commands in this repository; `prefect.toml` switches it on.

- A server asks for a login (flows/prefect_login.py).
- A server that runs on this machine is found without PREFECT_API_URL, if it knows the login.
- `prefect deployment run NAME` accepts a deployment's name without its flow.
- `prefect deploy --all` creates the work pool of prefect.yaml on a new server.

Prefect calls `setup_environment` when it starts, by the entry point "prefect.plugins" of
pyproject.toml.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pluggy
from prefect.plugins import HookContext, SetupResult
from prefect.settings import get_current_settings

from common.config.loading import ConfigError
from flows.adapters.prefect_client import extend_client
from flows.prefect_login import (
    CLIENT_LOGIN,
    SERVER_LOGIN,
    credentials,
    listening_sockets,
    login_of_server,
    make_login,
    start_with_login,
)

POOL = "clickmill"
TEMPLATE = Path(__file__).parents[1] / "docker" / "pools" / "process.json"
ANSWER_WITHIN_S = 15.0  # for a busy server; Prefect gives its plugins 20 s
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")
hookimpl = pluggy.HookimplMarker("prefect-experimental")


@hookimpl
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Extend Prefect's client, and set the URL and the login of the server on this machine.

    Prefect only logs what a plugin raises, and a server would then start without a login. So a
    server that has none ends here. Logins are not part of the result, because Prefect prints that.
    """
    extend_client(POOL, TEMPLATE)
    if starts_server(sys.argv):
        try:
            place = start_with_login()
        except ConfigError as error:
            print(f"clickmill: error: {error}", file=sys.stderr)
            raise SystemExit(os.EX_CONFIG) from None
        print(f"clickmill: this server asks for the login in {place}", file=sys.stderr)
        return None
    try:
        if ctx.api_url:
            _find_login(ctx.api_url)
            return None
        url = local_server(ctx.prefect_version)
    except ConfigError as error:
        print(f"clickmill: warning: {error}", file=sys.stderr)
        url = None
    if url is None:
        # Prefect may start a temporary server of its own, for this process only.
        login = make_login()
        os.environ.setdefault(SERVER_LOGIN, login)
        os.environ.setdefault(CLIENT_LOGIN, os.environ[SERVER_LOGIN])
        return None
    return SetupResult(env={"PREFECT_API_URL": url}, note=f"the server at {url}")


def starts_server(arguments: Sequence[str]) -> bool:
    """Return whether this process is `prefect server start`."""
    return "server" in arguments and "start" in arguments[arguments.index("server") :]


def local_server(version: str) -> str | None:
    """Return the API's URL of our Prefect server on this machine, if it has this version.

    The server's login becomes that of this process. What listens on the port without knowing the
    login is not asked anything.

    Raises:
        ConfigError: The file of the login is damaged.
    """
    api = get_current_settings().server.api
    url = f"http://{api.host}:{api.port}/api"
    if not listening_sockets(api.port):
        return None
    login = login_of_server(api.port)
    if login is None:
        print(
            f"clickmill: warning: what listens on port {api.port} is not the Prefect server of "
            "this user, so it is not used; `clickmill doctor` explains it",
            file=sys.stderr,
        )
        return None
    try:
        answer = httpx.get(f"{url}/admin/version", auth=credentials(login), timeout=ANSWER_WITHIN_S)
        if not answer.is_success or answer.json() != version:
            return None
    except (httpx.HTTPError, ValueError):
        return None
    os.environ[CLIENT_LOGIN] = login
    return url


def _find_login(url: str) -> None:
    """Set the login for a configured server on this machine, if it is ours and none is set."""
    address = urlsplit(url)
    api = get_current_settings().api
    if api.auth_string or api.key or address.hostname not in LOCAL_HOSTS:
        return
    if address.port and (login := login_of_server(address.port)):
        os.environ[CLIENT_LOGIN] = login
