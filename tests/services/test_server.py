"""The Prefect server on PostgreSQL, as docker/compose.yaml has it."""

from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import Project, free_port
from tests.factories.deployments import START_S, Api, start_service, stop, until
from tests.services.conftest import Postgres

pytestmark = pytest.mark.services


@pytest.fixture
def server(project: Project, postgres: Postgres) -> Iterator[Api]:
    port = str(free_port())
    settings = {"PREFECT_SERVER_API_PORT": port, **postgres.settings}
    log = project.root.parent / "prefect.log"
    service = start_service(
        Project(project.root, project.environment | settings), log, "prefect", "server", "start"
    )
    try:
        api = Api(f"http://127.0.0.1:{port}/api")
        until(api.ready, START_S, log)
        yield api
    finally:
        stop([service])


def test_ready_tells_of_the_database_and_comes_back(server: Api, postgres: Postgres) -> None:
    """What the health check of the compose file stands on: /api/ready, not /api/health."""
    made = server.post("/flows/", name="kept")["id"]
    postgres.stop()
    try:
        assert server.client.get("/ready").status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert server.client.get("/health").status_code == httpx.codes.OK
    finally:
        postgres.start()
    assert server.client.get("/ready").status_code == httpx.codes.OK
    assert server.get(f"/flows/{made}")["name"] == "kept"
