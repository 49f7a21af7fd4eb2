"""A Prefect server with this project's deployments: its REST interface and its flow runs."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from flows.prefect_login import FILE_NAME
from tests.conftest import Project
from tests.factories.support import ROOT

ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
PRINT_SETTINGS = """
from prefect.settings import Settings
print(*Settings().to_environment_variables(exclude_unset=True))
"""
# Far more than an idle machine needs: a limit ends a test that hangs, and others may work here too.
START_S, RUN_S, BUSY_S = 120.0, 600.0, 90.0


def start_service(project: Project, log: Path, *command: str) -> "subprocess.Popen[bytes]":
    """Start a command in a session of its own; its output is appended to log."""

    def restore_signals() -> None:
        """Undo that a shell lets a test run in the background ignore these signals."""
        for sig in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(sig, signal.SIG_DFL)

    environment = project.environment | {"PYTHONPATH": str(project.root)}
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=project.root,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=restore_signals,
        )


def stop(services: list["subprocess.Popen[bytes]"]) -> None:
    """Stop services, the last one first. A server whose database was away takes half a minute."""
    for service in reversed(services):
        service.terminate()
        try:
            service.wait(40)
        except subprocess.TimeoutExpired:
            service.kill()


def known_settings(environment: dict[str, str], home: Path) -> set[str]:
    """Return the variables of an environment that Prefect reads; it ignores a misspelt one."""
    output = subprocess.check_output(
        [sys.executable, "-c", PRINT_SETTINGS],
        env={"HOME": str(home), **environment},
        cwd=home,
        text=True,
    )
    return set(output.split())


def kubernetes_validator(kind: str) -> Draft202012Validator:
    """Return the strict schema of a kind of Kubernetes' objects, such as Job or PodSpec."""
    text = (ROOT / "tests" / "unit" / "docker" / "kubernetes.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text) | {"$ref": f"#/$defs/{kind}"})


def login_of(environment: dict[str, str]) -> str:
    """Return the login that a server with this environment has made."""
    return (Path(environment["PREFECT_HOME"]) / FILE_NAME).read_text(encoding="utf-8").strip()


class Api:
    """Prefect's REST interface."""

    def __init__(self, url: str, auth: str = "") -> None:
        """Auth is user:password, if the server asks for a password."""
        user, _, password = auth.partition(":")
        self.client = httpx.Client(
            base_url=url, timeout=30, auth=(user, password) if auth else None
        )

    def ready(self) -> bool:
        """Return whether the server and its database are ready."""
        try:
            return self.client.get("/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def post(self, path: str, **body: Any) -> Any:
        return self._answer("POST", path, json=body)

    def get(self, path: str) -> Any:
        return self._answer("GET", path)

    def _answer(self, method: str, path: str, **content: Any) -> Any:
        """Ask until SQLite of a busy server is no longer locked, as Prefect's own client does."""
        deadline_s = time.monotonic() + BUSY_S
        while True:
            with contextlib.suppress(httpx.TimeoutException):
                answer = self.client.request(method, path, **content)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return answer.raise_for_status().json()
            assert time.monotonic() < deadline_s, f"{method} {path}: no answer in {BUSY_S:.0f} s"
            time.sleep(0.5)


class Deployed:
    """A checkout whose deployments are on a server, and the log of server and worker.

    Attributes:
        services: The server and all workers so far, in the order of their start.
    """

    services: list["subprocess.Popen[bytes]"]

    def __init__(self, project: Project, api: Api, log: Path) -> None:
        self.project, self.api, self.log = project, api, log

    def start(self, name: str) -> str:
        """Start a deployment, and return the id of the flow run."""
        output = self.project.run("prefect", "deployment", "run", name)
        return next(line.split()[-1] for line in output.splitlines() if "UUID:" in line)

    def run(self, run_id: str) -> Any:
        """Return a flow run."""
        return self.api.get(f"/flow_runs/{run_id}")

    def finish(self, run_id: str) -> Any:
        """Wait until a flow run has ended, and return it."""
        until(lambda: self.run(run_id)["state_type"] in ENDED, RUN_S, self.log)
        return self.run(run_id)

    def tasks(self, run_id: str) -> dict[str, Any]:
        """Return the task runs of a flow run, by name."""
        tasks = self.api.post("/task_runs/filter", flow_runs={"id": {"any_": [run_id]}})
        return {task["name"]: task for task in tasks}

    def artifacts(self, run_id: str) -> dict[str, Any]:
        """Return the artifacts of a flow run, by key."""
        condition = {"flow_run_id": {"any_": [run_id]}}
        artifacts = self.api.post("/artifacts/filter", artifacts=condition)
        return {artifact["key"]: artifact for artifact in artifacts}

    def messages(self, run_id: str) -> list[str]:
        """Return the log messages of a flow run in their order."""
        condition = {"flow_run_id": {"any_": [run_id]}}
        logs = self.api.post("/logs/filter", logs=condition, sort="TIMESTAMP_ASC")
        return [log["message"] for log in logs]


def until(condition: Callable[[], Any], timeout_s: float, log: Path) -> None:
    """Wait until a condition holds; if it does not in time, fail with the end of the log."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, log.read_text()[-3000:]
        time.sleep(0.2)
