"""A plugin for Prefect's own commands in this repository; `prefect.toml` switches it on.

- A server that runs on this machine is found without PREFECT_API_URL.
- `prefect deployment run NAME` accepts a deployment's name without its flow.
- `prefect deploy --all` creates the work pool of prefect.yaml on a new server.

Prefect calls `setup_environment` when it starts, by the entry point "prefect.plugins" of
pyproject.toml.
"""

from pathlib import Path

import httpx
import pluggy
from prefect.plugins import HookContext, SetupResult
from prefect.settings import get_current_settings

from flows.adapters.prefect_client import extend_client

POOL = "clickmill"
TEMPLATE = Path(__file__).parents[1] / "docker" / "pools" / "process.json"
ANSWER_WITHIN_S = 15.0  # for a busy server; Prefect gives its plugins 20 s
hookimpl = pluggy.HookimplMarker("prefect-experimental")


@hookimpl
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Extend Prefect's client, and set PREFECT_API_URL if a server runs on this machine."""
    extend_client(POOL, TEMPLATE)
    url = None if ctx.api_url else local_server(ctx.prefect_version)
    return SetupResult(env={"PREFECT_API_URL": url}, note=f"the server at {url}") if url else None


def local_server(version: str) -> str | None:
    """Return the API's URL of the Prefect server on this machine, if it has this version."""
    api = get_current_settings().server.api
    url = f"http://{api.host}:{api.port}/api"
    try:
        answer = httpx.get(f"{url}/admin/version", timeout=ANSWER_WITHIN_S)
        return url if answer.is_success and answer.json() == version else None
    except (httpx.HTTPError, ValueError):
        return None
