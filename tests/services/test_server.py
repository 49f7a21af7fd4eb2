"""The Prefect server on PostgreSQL, as in docker/compose.yaml."""

from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import Project, free_port
from tests.factories.deployments import START_S, Api, login_of, start_service, stop, until
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
        yield Api(f"http://127.0.0.1:{port}/api", login_of(project.environment))
    finally:
        stop([service])


def test_ready_reports_a_database_that_is_away(server: Api, postgres: Postgres) -> None:
    """The compose file's health check asks /api/ready, because /api/health ignores the database."""
    flow_id = server.post("/flows/", name="kept")["id"]
    postgres.stop()
    try:
        assert server.client.get("/ready").status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert server.client.get("/health").status_code == httpx.codes.OK
    finally:
        postgres.start()
    assert server.client.get("/ready").status_code == httpx.codes.OK
    assert server.get(f"/flows/{flow_id}")["name"] == "kept"
