"""Two methods of Prefect's client, extended.

1. `read_deployment_by_name` accepts a name without a slash: NAME means NAME/NAME, so that
   `prefect deployment run train-dlrm` works. Prefect has no setting for it.
2. `read_work_pool` creates our work pool where it is missing, so that `prefect deploy --all` works
   on a new server. prefect.yaml cannot declare a work pool. `prefect deploy` also replaces the
   template of a pool that an earlier version created: it let each flow run choose a command.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

MARK = "extended_by_clickmill"


def extend_client(pool: str, template: Path, arguments: Sequence[str] = sys.argv) -> None:
    """Change PrefectClient as this module's docstring says. A second call does nothing.

    Args:
        pool: The work pool's name.
        template: The JSON file of its base job template.
        arguments: The words of this command. `prefect work-pool ...` asks whether a pool exists, so
            it gets the true answer. Only `prefect deploy ...` replaces a template.
    """
    if hasattr(PrefectClient, MARK):
        return
    read_deployment, read_pool = PrefectClient.read_deployment_by_name, PrefectClient.read_work_pool

    async def read_deployment_by_name(self: PrefectClient, name: str) -> DeploymentResponse:
        return await read_deployment(self, name if "/" in name else f"{name}/{name}")

    async def read_work_pool(self: PrefectClient, work_pool_name: str) -> WorkPool:
        values = json.loads(template.read_text(encoding="utf-8"))
        try:
            found = await read_pool(self, work_pool_name)
        except ObjectNotFound:
            if work_pool_name != pool or "work-pool" in arguments:
                raise
            return await self.create_work_pool(
                WorkPoolCreate(name=pool, type="process", base_job_template=values)
            )
        if work_pool_name == pool and "deploy" in arguments and runs_any_command(found):
            await self.update_work_pool(pool, WorkPoolUpdate(base_job_template=values))
            print(f"clickmill: the work pool {pool} no longer lets flow runs choose a command")
            return await read_pool(self, work_pool_name)
        return found

    # mypy does not accept a function in the place of a method.
    PrefectClient.read_deployment_by_name = read_deployment_by_name  # type: ignore
    PrefectClient.read_work_pool = read_work_pool  # type: ignore
    setattr(PrefectClient, MARK, True)


def runs_any_command(pool: WorkPool) -> bool:
    """Return whether a flow run in this process pool can choose the command that is executed."""
    variables = pool.base_job_template.get("variables", {}).get("properties", {})
    return pool.type == "process" and "command" in variables
