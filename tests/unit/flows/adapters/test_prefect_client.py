"""Our changes to Prefect's client are still needed, and still fit its methods.

The code runs in a process outside the repository, where prefect.toml does not load our plugin.
"""

import os
import subprocess
import sys
from pathlib import Path

NO_SERVER = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
SIGNATURES = """
import inspect
from prefect.client.orchestration import PrefectClient
for method in (PrefectClient.read_deployment_by_name, PrefectClient.read_work_pool):
    print(*inspect.signature(method).parameters)
"""
NAME_WITHOUT_FLOW = """
import asyncio
from prefect.client.orchestration import get_client

async def main():
    async with get_client() as client:
        await client.read_deployment_by_name("train-dlrm")

try:
    asyncio.run(main())
    print("accepted")
except Exception as error:
    print("refused:", error)
"""


def run(code: str, directory: Path) -> str:
    """Run code in a process of its own, without a Prefect server, and return its output."""
    return subprocess.check_output(
        [sys.executable, "-c", code], cwd=directory, env=os.environ | NO_SERVER, text=True
    )


def test_the_methods_have_the_signatures_that_we_rely_on(tmp_path: Path) -> None:
    assert run(SIGNATURES, tmp_path) == "self name\nself work_pool_name\n"


def test_prefect_itself_refuses_a_name_without_its_flow(tmp_path: Path) -> None:
    """If this fails, Prefect accepts such a name, and our change can be removed."""
    assert "refused: Invalid deployment name" in run(NAME_WITHOUT_FLOW, tmp_path)
