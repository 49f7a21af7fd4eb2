"""The flow as a user drives it: a real server, a real worker and the literal commands. One server for all tests, each with a checkout."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Project, free_port
from tests.e2e.test_dvc import STAGES
from tests.factories.deployments import RUN_S, START_S, Api, Deployed, start_service, stop, until
from tests.factories.support import listener

TWO_RANKS = {"devices": 2, "parallel": "data"}
TELL = """
import json, os
from pathlib import Path
from prefect import flow

@flow
def tell():
    Path("env.json").write_text(json.dumps({name: value for name, value in os.environ.items() if name.startswith("PET_")}))
"""

ENDINGS = """
from prefect import flow
from prefect.states import Completed

@flow(name="nightly")
def rejected():
    return Completed(name="Rejected", message='Nightly run 3: "worse" model')

@flow(name="train-dlrm")
def failed():
    raise RuntimeError("no rows")

rejected()
failed(return_state=True)
"""


@pytest.fixture(scope="module")
def deployed(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Iterator[Deployed]:
    """A fresh clone with `prefect server start`, `prefect deploy --all` and `prefect worker start --pool clickmill` behind it."""
    port = str(free_port())
    root = tmp_path_factory.mktemp("deployed") / "project"
    subprocess.run(["git", "clone", "-q", str(repository), str(root)], env=environment, check=True)
    url = f"http://127.0.0.1:{port}/api"
    settings = {
        "PREFECT_SERVER_API_PORT": port,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S",
    }  # no PREFECT_API_URL: the server is found
    project = Project(root, environment | settings)
    log = root.parent / "prefect.log"
    services: list[subprocess.Popen[bytes]] = []
    try:
        services.append(start_service(project, log, "prefect", "server", "start"))
        api = Api(url)
        until(api.ready, START_S, log)
        project.run(
            "prefect", "work-pool", "inspect", "clickmill", code=1
        )  # nor would `work-pool create` find one
        project.run("prefect", "deploy", "--all")
        services.append(
            start_service(project, log, "prefect", "worker", "start", "--pool", "clickmill")
        )
        yield Deployed(project, api, log)
    finally:
        stop(services)


def test_literal_run(deployed: Deployed, finished: Project) -> None:
    """train-dlrm without a slash, in a fresh clone: every stage a task, artifacts, and the dvc.lock that `dvc repro` leaves elsewhere."""
    run_id = deployed.start("train-dlrm")
    run = deployed.finish(run_id)
    assert run["state_type"] == "COMPLETED", deployed.log.read_text()
    assert deployed.project.lock == finished.lock
    assert set(deployed.tasks(run_id)) == {*STAGES, "publish"}

    artifacts = deployed.artifacts(run_id)
    assert {
        artifact["data"] for key, artifact in artifacts.items() if key.endswith("-progress")
    } == {100.0}
    assert "AUC" in artifacts["metrics"]["data"]
    assert (
        str(deployed.project.root / "artifacts/evaluation/report.html")
        in artifacts["report"]["data"]
    )
    until(
        lambda: any(message.startswith("evaluate  100 %") for message in deployed.messages(run_id)),
        10,
        deployed.log,
    )


def test_full_name_does_nothing_again(deployed: Deployed) -> None:
    before = deployed.project.lock
    run_id = deployed.start("train-dlrm/train-dlrm")
    assert deployed.finish(run_id)["state_type"] == "COMPLETED"
    assert deployed.project.lock == before
    until(
        lambda: (
            sum("didn't change, skipping" in message for message in deployed.messages(run_id))
            == len(STAGES)
        ),
        10,
        deployed.log,
    )


def test_job_variables_reach_the_flow(deployed: Deployed, tmp_path: Path) -> None:
    """nodes, devices and endpoint, of the deployment or of one run: through server, pool and worker into the flow's environment."""
    (tmp_path / "tell.py").write_text(TELL)
    flow_id = deployed.api.post("/flows/", name="tell")["id"]
    deployment = {
        "name": "tell",
        "flow_id": flow_id,
        "entrypoint": "tell.py:tell",
        "pull_steps": [
            {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}
        ],
        "work_pool_name": "clickmill",
        "job_variables": {"nodes": 2, "devices": 8, "endpoint": "first:29400"},
    }
    refused = deployed.api.client.post(
        "/deployments/", json=deployment | {"job_variables": {"nodes": "two"}}
    )
    assert (refused.status_code, "'two'" in refused.text) == (
        httpx.codes.UNPROCESSABLE_ENTITY,
        True,
    )

    deployment_id = deployed.api.post("/deployments/", **deployment)["id"]
    run_id = deployed.api.post(
        f"/deployments/{deployment_id}/create_flow_run", job_variables={"devices": 4}
    )["id"]
    assert deployed.finish(run_id)["state_type"] == "COMPLETED", deployed.log.read_text()
    assert json.loads((tmp_path / "env.json").read_text()) == {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "4",
        "PET_RDZV_ENDPOINT": "first:29400",
    }


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_server_takes_the_templates_of_the_other_pools(deployed: Deployed, kind: str) -> None:
    template = json.loads((deployed.project.root / f"docker/pools/{kind}.json").read_text())
    pool = deployed.api.post("/work_pools/", name=kind, type=kind, base_job_template=template)
    assert (pool["type"], pool["base_job_template"]) == (kind, template)


def test_cancelled_run_leaves_nothing(deployed: Deployed) -> None:
    before = deployed.project.lock
    for name, value in {"seed": 2, **TWO_RANKS}.items():
        deployed.project.set_param("train", name, value)
    run_id = deployed.start("train-dlrm")
    until(lambda: deployed.project.processes("training.distributed.worker"), RUN_S, deployed.log)
    deployed.project.run("prefect", "flow-run", "cancel", run_id)
    assert deployed.finish(run_id)["state_type"] == "CANCELLED"
    until(lambda: not deployed.project.processes(), 30, deployed.log)
    assert deployed.project.lock == before  # the stage was stopped, not waited for
    assert (
        deployed.project.root / "artifacts/model/bundle.json"
    ).exists()  # the last model still stands
    deployed.project.run("git", "checkout", "-q", "params.yaml")
    assert "Running stage 'train'" not in deployed.project.run(
        "dvc", "repro"
    )  # what the cancelled stage left does not matter


def test_a_killed_rank_is_tried_again(deployed: Deployed) -> None:
    """Prefect's task, DVC's stage, torchrun and its ranks: a rank that is killed fails the stage, and the next attempt goes on."""
    project = deployed.project
    for name, value in {
        **TWO_RANKS,
        "epochs": 4,
        "batch_size": 32,
        "checkpoint_minutes": 1e-9,
    }.items():
        project.set_param("train", name, value)
    run_id = deployed.start("train-dlrm")
    until(lambda: list(project.root.glob("runs/checkpoints/*/last.pt")), RUN_S, deployed.log)
    project.processes("training.distributed.worker")[-1].kill()
    assert deployed.finish(run_id)["state_type"] == "COMPLETED", deployed.log.read_text()
    assert deployed.tasks(run_id)["train"]["run_count"] == 2
    until(
        lambda: any("resumes at step" in message for message in deployed.messages(run_id)),
        10,
        deployed.log,
    )
    told = "\n".join(deployed.messages(run_id))
    assert re.search(
        r"stage train failed: training on 2 ranks failed: rank [01] on \S+: killed by SIGKILL", told
    ), told
    project.run("git", "checkout", "-q", "params.yaml")


def test_a_log_at_fault_fails_the_stage_at_once(deployed: Deployed, tmp_path: Path) -> None:
    """... and the run with the stage's own last line. A second attempt would find the same log; that of another failure is tried above."""
    log = tmp_path / "log.tsv"
    log.write_bytes(b"not\ta\tclick\n" * 100)
    deployed.project.set_param("data", "source", str(log))
    run_id = deployed.start("train-dlrm")
    run = deployed.finish(run_id)
    deployed.project.set_param("data", "source", "sample")
    tasks = deployed.tasks(run_id)
    assert run["state_type"] == "FAILED"
    assert set(tasks) == {"collect", "ingest"}
    assert tasks["ingest"]["run_count"] == 1
    assert "stage ingest failed: artifacts/raw/log.tsv" in run["state"]["message"]
    assert "3 columns, 40 expected" in run["state"]["message"]


def test_alerts_reach_a_listener(deployed: Deployed, tmp_path: Path) -> None:
    """A rejected model, a failed run and a missing nightly run are reported.

    A second call of the command adds no automation; one of an earlier version is deleted.
    """
    (tmp_path / "endings.py").write_text(ENDINGS)

    def automations() -> dict[str, str]:
        return {found["id"]: found["name"] for found in deployed.api.post("/automations/filter")}

    deployed.api.post(
        "/automations/",
        name="clickmill: a night is missing",  # as an earlier version created it
        trigger={"type": "event", "posture": "Reactive", "threshold": 1, "within": 0},
        actions=[{"type": "do-nothing"}],
    )
    with listener() as (url, got):
        alerts = ["clickmill", "nightly", "alerts", "--webhook", f"{url}/T0KEN", "--hours", "0.003"]
        names = deployed.project.run(*alerts).splitlines()
        made = automations()
        deployed.project.run("python", str(tmp_path / "endings.py"))
        assert deployed.project.run(*alerts).splitlines() == names
        until(lambda: len(set(got)) >= 3, 60, deployed.log)  # a busy server may send one again
    assert automations() == made
    assert sorted(made.values()) == sorted(names)
    assert {path for path, _ in got} == {"/T0KEN"}
    rejected, failed, missing = [json.loads(body)["text"] for _, body in dict.fromkeys(got)][:3]
    assert re.fullmatch(r"nightly \S+: Rejected: Nightly run 3: \"worse\" model ", rejected)
    assert re.fullmatch(r"train-dlrm \S+: Failed: .*no rows ", failed)
    assert missing == "nightly: no nightly run has ended within 0.003 h"
    assert "T0KEN" not in deployed.log.read_text()
    for number in made:
        deployed.api.client.delete(f"/automations/{number}")


def test_nightly_has_its_hour(deployed: Deployed) -> None:
    nightly, manual = (
        deployed.api.get(f"/deployments/name/{name}/{name}") for name in ("nightly", "train-dlrm")
    )
    assert [schedule["schedule"]["cron"] for schedule in nightly["schedules"]] == ["0 3 * * *"]
    assert nightly["schedules"][0]["schedule"]["timezone"] == "UTC"
    assert not manual["schedules"]
    for counted in (nightly["global_concurrency_limit"], manual["global_concurrency_limit"]):
        assert (
            counted is None
        )  # it would go on counting the runs of a machine that went down; flows/locks.py does not
    assert deployed.api.get("/work_pools/clickmill")["concurrency_limit"] is None


def test_nightly_is_scheduled(deployed: Deployed) -> None:
    """Not only deployed: the server's scheduler makes its runs."""

    def scheduled() -> bool:
        runs = deployed.api.post("/flow_runs/filter", flows={"name": {"any_": ["nightly"]}})
        return any(
            run["state_type"] == "SCHEDULED" and "T03:00:00" in run["expected_start_time"]
            for run in runs
        )

    until(scheduled, 90, deployed.log)


def test_an_absent_server_is_one_line_that_names_it(project: Project) -> None:
    absent = Project(
        project.root, project.environment | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    )
    last_line = absent.run("clickmill", "run", code=1).splitlines()[-1]
    assert last_line.startswith(
        "clickmill: error: PREFECT_API_URL is http://127.0.0.1:9/api, where no server answers"
    )
