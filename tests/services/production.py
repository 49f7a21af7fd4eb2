"""Nightly runs as in production: a Prefect server on PostgreSQL with a password, and a worker."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import Project, free_port
from tests.factories.deployments import START_S, Api, Deployed, start_service, stop, until
from tests.services.conftest import Postgres

PASSWORD = "nightly:prefect-pass"


class Production(Deployed):
    """A server with deployments, and a worker that can be started again, as systemd would do."""

    @property
    def worker(self) -> "subprocess.Popen[bytes]":
        return self.services[-1]

    def start_worker(self) -> None:
        self.services.append(
            start_service(
                self.project, self.log, "prefect", "worker", "start", "--pool", "clickmill"
            )
        )


@contextmanager
def production(
    root: Path, log: Path, environment: dict[str, str], postgres: Postgres
) -> Iterator[Production]:
    """Run server and worker until the end of the block. Nothing is deployed yet.

    Args:
        root: The repository.
        log: Gets the output of server and workers.
        environment: The environment of every command, the worker included.
        postgres: The server's database.
    """
    port = str(free_port())
    url = f"http://127.0.0.1:{port}/api"
    client = {
        "PREFECT_API_URL": url,
        "PREFECT_API_AUTH_STRING": PASSWORD,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    server = {
        "PREFECT_SERVER_API_PORT": port,
        "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
        **postgres.settings,
    }
    started = Production(Project(root, environment | client), Api(url, PASSWORD), log)
    started.services = [
        start_service(
            Project(root, started.project.environment | server), log, "prefect", "server", "start"
        )
    ]
    try:
        until(started.api.ready, START_S, log)
        started.start_worker()
        yield started
    finally:
        stop(started.services)
