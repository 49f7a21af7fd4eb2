"""Three conveniences for Prefect's own commands when run in this repository; prefect.toml switches them on.

A server that runs on this machine is found: without PREFECT_API_URL Prefect would start a temporary one beside it, or refuse.
`prefect deployment run NAME` accepts a name without a slash: NAME means NAME/NAME.
`prefect deploy --all` on a new server finds the work pool of prefect.yaml: it is made from docker/pools/process.json, instead of refused.
Prefect itself calls setup_environment as it starts, by the entry point "prefect.plugins" in pyproject.toml.
"""

import json
import sys
from pathlib import Path

import httpx
import pluggy
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.plugins import HookContext, SetupResult
from prefect.settings import get_current_settings

POOL = "clickmill"
TEMPLATE = Path(__file__).parents[1] / "docker" / "pools" / "process.json"
ANSWER_WITHIN_S = 15.0  # a busy one; where none listens the answer is there at once, and Prefect gives its plugins 20 s
hookimpl = pluggy.HookimplMarker("prefect-experimental")


@hookimpl
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Extend the client, and tell where the server is if nobody said so."""
    extend_client()
    url = None if ctx.api_url else local_server(ctx.prefect_version)
    return SetupResult(env={"PREFECT_API_URL": url}, note=f"the server at {url}") if url else None


def local_server(version: str) -> str | None:
    """The API of the Prefect server on this machine, where `prefect server start` puts it, if there is one of this very version."""
    api = get_current_settings().server.api
    url = f"http://{api.host}:{api.port}/api"
    try:
        answer = httpx.get(f"{url}/admin/version", timeout=ANSWER_WITHIN_S)
        return url if answer.is_success and answer.json() == version else None
    except (httpx.HTTPError, ValueError):
        return None


def extend_client() -> None:
    """Two of the client's methods, once."""
    if getattr(PrefectClient, "of_clickmill", False):
        return
    read_deployment, read_pool = PrefectClient.read_deployment_by_name, PrefectClient.read_work_pool

    async def read_deployment_by_name(self: PrefectClient, name: str) -> DeploymentResponse:
        return await read_deployment(self, name if "/" in name else f"{name}/{name}")

    async def read_work_pool(self: PrefectClient, work_pool_name: str) -> WorkPool:
        try:
            return await read_pool(self, work_pool_name)
        except ObjectNotFound:
            if (
                work_pool_name != POOL or "work-pool" in sys.argv
            ):  # `prefect work-pool create` asks first whether there is one
                raise
            template = json.loads(TEMPLATE.read_text(encoding="utf-8"))
            return await self.create_work_pool(
                WorkPoolCreate(name=POOL, type="process", base_job_template=template)
            )

    PrefectClient.read_deployment_by_name = read_deployment_by_name  # type: ignore[method-assign,assignment]
    PrefectClient.read_work_pool = read_work_pool  # type: ignore[method-assign,assignment]
    PrefectClient.of_clickmill = True  # type: ignore[attr-defined]
