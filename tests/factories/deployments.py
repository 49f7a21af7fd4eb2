"""A Prefect server with this project's deployments: its REST interface, and what became of runs there."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import Project

ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
START_S, RUN_S, BUSY_S = 60.0, 180.0, 90.0


def start_service(project: Project, log: Path, *command: str) -> "subprocess.Popen[bytes]":
    def defaults() -> None:
        for sig in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(sig, signal.SIG_DFL)  # a test run in the background has them ignored

    environment = project.environment | {"PYTHONPATH": str(project.root)}
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=project.root,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=defaults,
        )


def stop(services: list["subprocess.Popen[bytes]"]) -> None:
    """The last one first. A server whose database was away takes half a minute."""
    for service in reversed(services):
        service.terminate()
        try:
            service.wait(40)
        except subprocess.TimeoutExpired:
            service.kill()


class Api:
    """Prefect's REST interface. auth: user:password of a server that asks for it."""

    def __init__(self, url: str, auth: str = "") -> None:
        user, _, password = auth.partition(":")
        self.client = httpx.Client(
            base_url=url, timeout=30, auth=(user, password) if auth else None
        )

    def ready(self) -> bool:
        try:
            return self.client.get("/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def post(self, path: str, **body: Any) -> Any:
        return self._answer("POST", path, json=body)

    def get(self, path: str) -> Any:
        return self._answer("GET", path)

    def _answer(self, method: str, path: str, **content: Any) -> Any:
        """A busy server's SQLite may be locked for a while; Prefect's own client asks again as well."""
        deadline_s = time.monotonic() + BUSY_S
        while True:
            with contextlib.suppress(httpx.TimeoutException):
                answer = self.client.request(method, path, **content)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return answer.raise_for_status().json()
            assert time.monotonic() < deadline_s, f"{method} {path}: no answer in {BUSY_S:.0f} s"
            time.sleep(0.5)


class Deployed:
    def __init__(self, project: Project, api: Api, log: Path) -> None:
        self.project, self.api, self.log = project, api, log

    def start(self, name: str) -> str:
        """`prefect deployment run NAME`; the flow run's id."""
        output = self.project.run("prefect", "deployment", "run", name)
        return next(line.split()[-1] for line in output.splitlines() if "UUID:" in line)

    def run(self, run_id: str) -> Any:
        return self.api.get(f"/flow_runs/{run_id}")

    def finish(self, run_id: str) -> Any:
        """Wait for a flow run to end; the run."""
        until(lambda: self.run(run_id)["state_type"] in ENDED, RUN_S, self.log)
        return self.run(run_id)

    def tasks(self, run_id: str) -> dict[str, Any]:
        found = self.api.post("/task_runs/filter", flow_runs={"id": {"any_": [run_id]}})
        return {task["name"]: task for task in found}

    def artifacts(self, run_id: str) -> dict[str, Any]:
        found = self.api.post("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run_id]}})
        return {artifact["key"]: artifact for artifact in found}

    def messages(self, run_id: str) -> list[str]:
        return [
            log["message"]
            for log in self.api.post(
                "/logs/filter", logs={"flow_run_id": {"any_": [run_id]}}, sort="TIMESTAMP_ASC"
            )
        ]


def until(condition: Callable[[], Any], timeout_s: float, log: Path) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, log.read_text()[-3000:]
        time.sleep(0.2)
