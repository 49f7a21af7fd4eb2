"""The deployed flows: a real Prefect server, a real worker, and the commands that a user types.

All tests use one server, one worker and one checkout.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from prefect.workers.process import ProcessWorker
from ruamel.yaml import YAML

from tests.conftest import Project, free_port
from tests.factories.deployments import (
    RUN_S,
    START_S,
    Api,
    Deployed,
    login_of,
    start_service,
    stop,
    until,
)
from tests.factories.studies import tune_values
from tests.factories.support import (
    STAGES,
    answer_with,
    children_where,
    listener,
    serving,
    wait_for,
)
from training.tune.study_files import STUDIES, TRIALS

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
EVIL = "http://evil.example"
# What a web page can send: with a question first (JSON), and without one (no content type, a form).
PAGE = """
<script>
const url = "URL", order = 'ORDER', answers = [];
const send = (options) => fetch(url, {method: "POST", body: order, ...options})
    .then((answer) => answers.push(answer.status), (error) => answers.push(String(error)));
async function attack() {
    await send({headers: {"content-type": "application/json"}});
    await send({mode: "no-cors", body: new Blob([order])});
    await send({mode: "no-cors", credentials: "include"});
    await send({mode: "no-cors", headers: {"content-type": "text/plain"}});
    await fetch("/done", {method: "POST", body: JSON.stringify(answers)});
}
attack();
</script>
"""
TWO_RANKS = {"devices": 2, "parallel": "data"}
WRITE_ENVIRONMENT = """
import json, os
from pathlib import Path
from prefect import flow

@flow
def write_environment():
    values = {name: value for name, value in os.environ.items() if name.startswith("PET_")}
    Path("env.json").write_text(json.dumps(values))
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
    """A fresh clone after the commands of the guide: start a server, deploy, start a worker."""
    port = str(free_port())
    root = tmp_path_factory.mktemp("deployed") / "project"
    subprocess.run(["git", "clone", "-q", str(repository), str(root)], env=environment, check=True)
    url = f"http://127.0.0.1:{port}/api"
    # PREFECT_API_URL is not set, because our plugin finds a server on this machine.
    settings = {
        "PREFECT_SERVER_API_PORT": port,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S",
    }
    project = Project(root, environment | settings)
    log = root.parent / "prefect.log"
    services: list[subprocess.Popen[bytes]] = []
    try:
        services.append(start_service(project, log, "prefect", "server", "start"))
        api = Api(url)
        until(api.ready, START_S, log)
        api = Api(url, login_of(environment))
        # The plugin creates a missing pool only for `deploy`; `work-pool` commands do not find it.
        project.run("prefect", "work-pool", "inspect", "clickmill", code=1)
        project.run("prefect", "deploy", "--all")
        services.append(
            start_service(project, log, "prefect", "worker", "start", "--pool", "clickmill")
        )
        started = Deployed(project, api, log)
        started.services = services
        yield started
    finally:
        stop(services)


@pytest.fixture(scope="module")
def first_run(deployed: Deployed) -> str:
    """Train once, so that the checkout has all outputs; return the id of the flow run.

    The name of a deployment is enough to start it.
    """
    run_id = deployed.start("train-dlrm")
    assert deployed.finish(run_id)["state_type"] == "COMPLETED", deployed.log.read_text()
    return run_id


def test_a_run_has_a_task_for_each_stage_and_artifacts(
    deployed: Deployed, first_run: str, finished: Project
) -> None:
    """A run of a deployment leaves the same dvc.lock as `dvc repro`."""
    assert deployed.project.lock == finished.lock
    assert set(deployed.tasks(first_run)) == {*STAGES, "publish"}

    artifacts = deployed.artifacts(first_run)
    bars = {key: artifact for key, artifact in artifacts.items() if key.endswith("-progress")}
    assert {bar["data"] for bar in bars.values()} == {100.0}
    assert "AUC" in artifacts["metrics"]["data"]
    report = deployed.project.root / "artifacts/evaluation/report.html"
    assert str(report) in artifacts["report"]["data"]
    until(
        lambda: any(
            message.startswith("evaluate  100 %") for message in deployed.messages(first_run)
        ),
        10,
        deployed.log,
    )


@pytest.mark.usefixtures("first_run")
def test_a_second_run_skips_all_stages(deployed: Deployed) -> None:
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
    """nodes, devices and endpoint become environment variables of the flow.

    They are set for the deployment or for one run, and pass through server, pool and worker.
    """
    (tmp_path / "environment.py").write_text(WRITE_ENVIRONMENT)
    flow_id = deployed.api.post("/flows/", name="write-environment")["id"]
    deployment = {
        "name": "write-environment",
        "flow_id": flow_id,
        "entrypoint": "environment.py:write_environment",
        "pull_steps": [
            {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}
        ],
        "work_pool_name": "clickmill",
        "job_variables": {"nodes": 2, "devices": 8, "endpoint": "first:29400"},
    }
    refused = deployed.api.client.post(
        "/deployments/", json=deployment | {"job_variables": {"nodes": "two"}}
    )
    assert refused.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert "'two'" in refused.text

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


@pytest.mark.parametrize("client", ["http", "browser"])
def test_a_web_page_cannot_give_orders(deployed: Deployed, client: str, tmp_path: Path) -> None:
    """The page knows the id of the deployment, and asks for a command, as an attack did."""
    marker = tmp_path / "executed"
    number = deployed.api.get("/deployments/name/train-dlrm/train-dlrm")["id"]
    path = f"/deployments/{number}/create_flow_run"
    url = str(deployed.api.client.base_url).rstrip("/") + path
    order = {"state": {"type": "SCHEDULED"}, "job_variables": {"command": f"touch {marker}"}}
    before = deployed.api.post("/flow_runs/count")
    if client == "http":
        origin = {"Origin": EVIL}
        for options in ({"json": order}, {"content": json.dumps(order)}):
            answer = httpx.post(url, headers=origin, **options)
            assert answer.status_code == httpx.codes.UNAUTHORIZED
        asked = {**origin, "Access-Control-Request-Method": "POST"}
        assert "access-control-allow-origin" not in httpx.options(url, headers=asked).headers
    else:
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser is None:
            pytest.skip("no Chromium on PATH")
        page = PAGE.replace("URL", url).replace("ORDER", json.dumps(order))
        assert attack(browser, page, tmp_path) == ["TypeError: Failed to fetch", 0, 0, 0]
    time.sleep(5)  # the worker asks for runs every second
    assert deployed.api.post("/flow_runs/count") == before
    assert not marker.exists()
    # Nobody can choose a command, not even with the login.
    refused = deployed.api.client.post(path, json=order)
    assert refused.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert "'command' was unexpected" in refused.text
    assert deployed.api.post("/flow_runs/count") == before


def attack(browser: str, page: str, home: Path) -> list[int | str]:
    """Open a page, which has an Origin of its own, in a browser; return the answers it got."""
    reports: list[bytes] = []

    class Handler(answer_with(page.encode())):  # type: ignore[misc]
        def do_POST(self) -> None:  # noqa: N802
            reports.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={home / 'browser'}"]
    with (
        serving(Handler) as port,
        subprocess.Popen(
            [browser, *options, f"http://127.0.0.1:{port}/"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
    ):
        try:
            wait_for(lambda: reports)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    return list(json.loads(reports[0]))


def test_the_login_is_in_no_log_and_on_no_command_line(deployed: Deployed) -> None:
    password = login_of(deployed.project.environment).partition(":")[2]
    assert password not in deployed.log.read_text()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert password not in " ".join(process.cmdline())


def test_a_server_is_found_by_its_url_too(deployed: Deployed) -> None:
    """Prefect advises to set PREFECT_API_URL; the login is then found for our server only."""
    url = str(deployed.api.client.base_url).rstrip("/")
    project = Project(
        deployed.project.root, deployed.project.environment | {"PREFECT_API_URL": url}
    )
    assert "train-dlrm" in project.run("prefect", "deployment", "ls")
    assert re.search(rf"ok +Prefect server +{url} ", project.run("clickmill", "doctor"))
    stranger = Project(project.root, project.environment | {"PREFECT_HOME": str(project.root)})
    alerts = ["clickmill", "nightly", "alerts", "--email", "ops@example.com"]
    last_line = stranger.run(*alerts, code=os.EX_CONFIG).splitlines()[-1]
    assert last_line.endswith("401 Unauthorized; set PREFECT_API_AUTH_STRING to the server's value")


def test_deploying_replaces_the_template_of_an_earlier_version(deployed: Deployed) -> None:
    path = "/work_pools/clickmill"
    ours = deployed.api.get(path)["base_job_template"]
    theirs = ProcessWorker.get_default_base_job_template()
    deployed.api.client.patch(path, json={"base_job_template": theirs}).raise_for_status()
    output = deployed.project.run("prefect", "deploy", "--all")
    assert "the work pool clickmill no longer lets flow runs choose a command" in output
    assert deployed.api.get(path)["base_job_template"] == ours


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_server_accepts_the_templates_of_the_other_pools(deployed: Deployed, kind: str) -> None:
    template = json.loads((deployed.project.root / f"docker/pools/{kind}.json").read_text())
    pool = deployed.api.post("/work_pools/", name=kind, type=kind, base_job_template=template)
    assert (pool["type"], pool["base_job_template"]) == (kind, template)


def zombies_of(number: int) -> list[psutil.Process]:
    """Return the processes below a process that have ended and that no parent has waited for."""
    return children_where(
        lambda child: child.status() == psutil.STATUS_ZOMBIE,
        psutil.Process(number),
        recursive=True,
    )


@pytest.mark.usefixtures("first_run")
def test_a_cancelled_run_leaves_no_process(deployed: Deployed) -> None:
    before = deployed.project.lock
    for name, value in {"seed": 2, **TWO_RANKS}.items():
        deployed.project.set_param("train", name, value)
    run_id = deployed.start("train-dlrm")
    until(lambda: deployed.project.processes("training.worker"), RUN_S, deployed.log)
    deployed.project.run("prefect", "flow-run", "cancel", run_id)
    assert deployed.finish(run_id)["state_type"] == "CANCELLED"
    until(lambda: not deployed.project.processes(), 30, deployed.log)
    # A process is a zombie for a moment after its end, until its parent waits for it.
    services = deployed.services
    until(lambda: not any(zombies_of(each.pid) for each in services), 30, deployed.log)
    assert "Failed to initialize plugins" not in deployed.log.read_text()
    assert deployed.project.lock == before  # the stage was stopped before its end
    assert (
        deployed.project.root / "artifacts/model/bundle.json"
    ).exists()  # the model of the earlier run
    deployed.project.run("git", "checkout", "-q", "params.yaml")
    # The files that the cancelled stage left make no stage stale.
    assert "Running stage 'train'" not in deployed.project.run("dvc", "repro")


def test_a_search_is_cancelled_resumed_and_shown(deployed: Deployed) -> None:
    """The second run of tune-dlrm begins with the trials of the first one."""
    project = deployed.project
    settings = tune_values(
        trials=3,
        parallel=1,
        set={"train.epochs": 1, "train.validations": 4},
        confirm={"best": 1, "seeds": 2},
    )
    with (project.root / "tune.yaml").open("w") as file:
        YAML(typ="safe").dump(settings, file)
    run_id = deployed.start("tune-dlrm")
    journals = (project.root / STUDIES).glob
    until(lambda: list(journals(f"*/{TRIALS}")), RUN_S, deployed.log)
    project.run("prefect", "flow-run", "cancel", run_id)
    assert deployed.finish(run_id)["state_type"] == "CANCELLED"
    until(lambda: not project.processes(), 30, deployed.log)

    run_id = deployed.start("tune-dlrm")
    assert deployed.finish(run_id)["state_type"] == "COMPLETED", deployed.log.read_text()
    messages = deployed.messages(run_id)
    assert any("of 3 trials of study" in message for message in messages), messages
    artifacts = deployed.artifacts(run_id)
    assert artifacts["tune-progress"]["data"] == 100.0
    assert "logloss" in artifacts["tune-front"]["data"]
    assert "# Study" in artifacts["tune-result"]["data"]
    assert "report.html" in artifacts["tune-result"]["data"]
    project.run("git", "checkout", "-q", "tune.yaml")


def test_a_stage_whose_rank_was_killed_is_retried(deployed: Deployed) -> None:
    """After a kill, torchrun, DVC's stage and Prefect's task fail; the retry resumes training."""
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
    project.processes("training.worker")[-1].kill()
    assert deployed.finish(run_id)["state_type"] == "COMPLETED", deployed.log.read_text()
    assert deployed.tasks(run_id)["train"]["run_count"] == 2
    until(
        lambda: any("resumes at step" in message for message in deployed.messages(run_id)),
        10,
        deployed.log,
    )
    messages = "\n".join(deployed.messages(run_id))
    assert re.search(
        r"stage train failed: training on 2 ranks failed: rank [01] on \S+: killed by SIGKILL",
        messages,
    ), messages
    project.run("git", "checkout", "-q", "params.yaml")


def test_a_fault_of_the_log_is_not_retried(deployed: Deployed, tmp_path: Path) -> None:
    """A retry would read the same log. The state of the run has the message of the stage."""
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

    A second call of the command adds no automation. An automation of an earlier version is deleted.
    """
    (tmp_path / "endings.py").write_text(ENDINGS)

    def automations() -> dict[str, str]:
        """Return the automations of the server, id -> name."""
        return {each["id"]: each["name"] for each in deployed.api.post("/automations/filter")}

    deployed.api.post(
        "/automations/",
        name="clickmill: a night is missing",  # as an earlier version created it
        # without `expect` it would react to every event, also to events that it causes
        trigger={
            "type": "event",
            "posture": "Reactive",
            "expect": ["clickmill.never"],
            "threshold": 1,
            "within": 0,
        },
        actions=[{"type": "do-nothing"}],
    )
    with listener() as (url, requests):
        alerts = ["clickmill", "nightly", "alerts", "--webhook", f"{url}/T0KEN", "--hours", "0.003"]
        names = deployed.project.run(*alerts).splitlines()
        created = automations()
        deployed.project.run("python", str(tmp_path / "endings.py"))
        assert deployed.project.run(*alerts).splitlines() == names
        until(
            lambda: len(set(requests)) >= 3, 60, deployed.log
        )  # a busy server may send an alert twice
    assert automations() == created
    assert sorted(created.values()) == sorted(names)
    assert {path for path, _ in requests} == {"/T0KEN"}
    texts = [json.loads(body)["text"] for _, body in dict.fromkeys(requests)]
    rejected, failed, missing = texts[:3]
    assert re.fullmatch(r"nightly \S+: Rejected: Nightly run 3: \"worse\" model ", rejected)
    assert re.fullmatch(r"train-dlrm \S+: Failed: .*no rows ", failed)
    assert missing == "nightly: no nightly run has ended within 0.003 h"
    assert "T0KEN" not in deployed.log.read_text()
    for number in created:
        deployed.api.client.delete(f"/automations/{number}")


def test_only_nightly_has_a_schedule(deployed: Deployed) -> None:
    nightly, manual = (
        deployed.api.get(f"/deployments/name/{name}/{name}") for name in ("nightly", "train-dlrm")
    )
    assert [schedule["schedule"]["cron"] for schedule in nightly["schedules"]] == ["0 3 * * *"]
    assert nightly["schedules"][0]["schedule"]["timezone"] == "UTC"
    assert not manual["schedules"]
    # If a machine loses its power, its run would still count for a limit of Prefect. The locks of
    # flows/locks.py are released in this case.
    assert nightly["global_concurrency_limit"] is None
    assert manual["global_concurrency_limit"] is None
    assert deployed.api.get("/work_pools/clickmill")["concurrency_limit"] is None


def test_the_server_schedules_runs_of_nightly(deployed: Deployed) -> None:
    def is_scheduled() -> bool:
        runs = deployed.api.post("/flow_runs/filter", flows={"name": {"any_": ["nightly"]}})
        return any(
            run["state_type"] == "SCHEDULED" and "T03:00:00" in run["expected_start_time"]
            for run in runs
        )

    until(is_scheduled, 90, deployed.log)


def test_an_absent_server_is_reported_in_one_line(project: Project) -> None:
    absent = Project(
        project.root, project.environment | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    )
    last_line = absent.run("clickmill", "run", code=1).splitlines()[-1]
    assert last_line.startswith(
        "clickmill: error: PREFECT_API_URL is http://127.0.0.1:9/api, where no server answers"
    )
