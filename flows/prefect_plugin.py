"""Two conveniences for Prefect's own commands when run in this repository; prefect.toml switches them on.

`prefect deployment run NAME` accepts a name without a slash: NAME means NAME/NAME.
`prefect deploy --all` on a new server finds the work pool of prefect.yaml: it is made when first asked for, instead of refused.
Prefect itself calls setup_environment as it starts, by the entry point "prefect.plugins" in pyproject.toml.
"""

from typing import Any

import pluggy
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

POOL = "clickmill"
hookimpl = pluggy.HookimplMarker("prefect-experimental")


@hookimpl
def setup_environment(*, ctx: Any) -> None:
    """Extend two of the client's methods, once."""
    if getattr(PrefectClient, "of_clickmill", False):
        return
    read_deployment, read_pool = PrefectClient.read_deployment_by_name, PrefectClient.read_work_pool

    async def read_deployment_by_name(self: PrefectClient, name: str) -> DeploymentResponse:
        return await read_deployment(self, name if "/" in name else f"{name}/{name}")

    async def read_work_pool(self: PrefectClient, work_pool_name: str) -> WorkPool:
        try:
            return await read_pool(self, work_pool_name)
        except ObjectNotFound:
            if work_pool_name != POOL:
                raise
            # One run at a time: one checkout can run one dvc.
            return await self.create_work_pool(WorkPoolCreate(name=POOL, type="process", concurrency_limit=1))

    PrefectClient.read_deployment_by_name = read_deployment_by_name  # type: ignore[method-assign,assignment]
    PrefectClient.read_work_pool = read_work_pool  # type: ignore[method-assign,assignment]
    PrefectClient.of_clickmill = True  # type: ignore[attr-defined]
