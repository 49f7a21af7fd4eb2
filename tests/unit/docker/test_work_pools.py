"""docker/pools/ without an engine or a cluster: Prefect renders each work-pool template, and what comes out is checked."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from docker.types import HostConfig
from jsonschema import Draft202012Validator
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.templating import find_placeholders
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from tests.factories.support import ROOT

TEMPLATES = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "docker" / "pools").glob("*.json"))
}
JOB_SCHEMA = json.loads((Path(__file__).parent / "kubernetes_job.json").read_text())
OFFLINE = PrefectClient(
    "http://127.0.0.1:9/api"
)  # asked only for blocks and variables of the server, which no template names
RUN = {"nodes": 2, "devices": 8, "endpoint": "first:29400"}
OF_RUN = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "8", "PET_RDZV_ENDPOINT": "first:29400"}
each = pytest.mark.parametrize("kind", TEMPLATES)


class Rendered(BaseJobConfiguration, extra="allow"):
    """A job of any kind of pool: what Prefect's own rendering leaves, unchecked."""


def render(kind: str, cls: Any = Rendered, **variables: Any) -> Any:
    return asyncio.run(cls.from_template_and_values(TEMPLATES[kind], variables, client=OFFLINE))


def prepared(kind: str, cls: Any, **variables: Any) -> Any:
    """As the worker hands it to its process, container or Job."""
    job = render(kind, cls, **variables)
    job.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="loud-tiger"))
    return job


def pet(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith("PET_")}


def pod_of(manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    pod = manifest["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def test_there_is_one_of_each_kind() -> None:
    assert list(TEMPLATES) == ["docker", "kubernetes", "process"]


@each
def test_every_placeholder_is_a_variable_and_every_variable_is_used(kind: str) -> None:
    variables = set(TEMPLATES[kind]["variables"]["properties"])
    used = {
        placeholder.name for placeholder in find_placeholders(TEMPLATES[kind]["job_configuration"])
    }
    assert used == variables - {
        "env"
    }  # Prefect lays it over the template's env by itself: the next test
    assert {*RUN} <= variables


@each
def test_env_is_laid_over_that_of_the_template(kind: str) -> None:
    assert (
        render(kind, **RUN, env={"A": "1", "PET_NNODES": "3"}).env.items()
        >= {**OF_RUN, "A": "1", "PET_NNODES": "3"}.items()
    )


@each
def test_variables_are_a_schema_which_their_defaults_fit(kind: str) -> None:
    schema = TEMPLATES[kind]["variables"]
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    defaults = {
        name: variable["default"]
        for name, variable in schema["properties"].items()
        if "default" in variable
    }
    validator.validate(defaults)
    validator.validate(RUN)
    for wrong in ({"nodes": 0}, {"nodes": "two"}, {"devices": 1.5}, {"endpoint": "first"}):
        assert not validator.is_valid(wrong), wrong
    assert all(
        variable.get("description")
        for variable in schema["properties"].values()
        if "$ref" not in str(variable)
    )


@each
def test_run_variables_reach_torchrun(kind: str) -> None:
    assert pet(render(kind, **RUN).env) == OF_RUN


@pytest.mark.parametrize("kind", ["docker", "process"])
def test_what_is_not_set_is_left_to_params_yaml(kind: str) -> None:
    assert pet(prepared(kind, Rendered).env) == {}
    assert pet(prepared(kind, Rendered, nodes=None, devices=None, endpoint=None).env) == {}
    assert pet(prepared(kind, Rendered, devices=8).env) == {"PET_NPROC_PER_NODE": "8"}


def test_process_is_prefects_own_with_three_variables_more(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = ProcessWorker.get_default_base_job_template()
    ours = TEMPLATES["process"]
    assert {
        name: ours["variables"]["properties"][name] for name in stock["variables"]["properties"]
    } == stock["variables"]["properties"]
    assert ours["job_configuration"] | {"env": "{{ env }}"} == stock["job_configuration"]
    assert pet(prepared("process", ProcessJobConfiguration, **RUN).env) == OF_RUN
    monkeypatch.setenv("PET_NNODES", "4")  # of the worker
    assert pet(prepared("process", ProcessJobConfiguration, nodes=None).env) == {"PET_NNODES": "4"}


def test_docker_gives_gpus_shared_memory_and_the_hosts_network() -> None:
    job = render("docker", shm_size="16g", interface="ib0")
    assert (job.image, job.volumes, job.network_mode) == (
        image_of_dockerfile(),
        [".:/clickmill"],
        "host",
    )
    assert job.env == {
        "NCCL_DEBUG": "WARN",
        "NCCL_SOCKET_IFNAME": "ib0",
        "GLOO_SOCKET_IFNAME": "ib0",
    }
    host = HostConfig(version="1.44", **job.container_create_kwargs)
    (gpus,) = host["DeviceRequests"]
    assert (host["Init"], host["ShmSize"], gpus["Count"], gpus["Capabilities"]) == (
        True,
        16 << 30,
        -1,
        [["gpu"]],
    )
    assert (
        HostConfig(version="1.44", **render("docker", device_requests=[]).container_create_kwargs)[
            "DeviceRequests"
        ]
        == []
    )


def image_of_dockerfile() -> str:
    """The tag that docker/train.Dockerfile tells to give the build for GPUs."""
    (line,) = [
        line
        for line in (ROOT / "docker" / "train.Dockerfile").read_text().splitlines()
        if "VARIANT=cuda -t " in line
    ]
    return line.split(" -t ")[1].split()[0]


@pytest.mark.parametrize(
    "variables",
    [{}, RUN, {"nodes": 64, "interface": "eth0", "memory_limit": "64Gi", "cpu_request": "8"}],
)
def test_job_obeys_kubernetes_schema(variables: dict[str, Any]) -> None:
    manifest = render("kubernetes", **variables).job_manifest
    pod, container = pod_of(manifest)
    # Prefect's worker refuses a manifest without these two, in the one place where Kubernetes does not know them (it drops them).
    assert (pod.pop("completions"), pod.pop("parallelism")) == (1, 1)
    assert (pod["restartPolicy"], container["name"]) == (
        "Never",
        "prefect-job",
    )  # it refuses others, too
    Draft202012Validator(JOB_SCHEMA).validate(manifest)


def test_job_has_a_pod_on_each_machine_with_a_rank_on_each_gpu() -> None:
    job = render("kubernetes", **RUN)
    spec, (pod, container) = job.job_manifest["spec"], pod_of(job.job_manifest)
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (2, 2, "Indexed")
    assert str(spec["completions"]) == job.env["PET_NNODES"]
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job.env["PET_NPROC_PER_NODE"]
    (apart,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert (
        apart["labelSelector"]["matchLabels"].items()
        <= spec["template"]["metadata"]["labels"].items()
    )
    assert spec["backoffLimit"] == 0
    assert spec["successPolicy"] == {
        "rules": [{"succeededIndexes": "0"}]
    }  # the flow's end ends the pods that have joined


def test_job_without_variables_is_one_pod_without_gpu() -> None:
    job = render("kubernetes")
    assert (job.job_manifest["spec"]["completions"], job.env["PET_NNODES"]) == (1, "1")
    assert "PET_NPROC_PER_NODE" not in job.env
    assert pod_of(job.job_manifest)[1]["resources"]["limits"] == {}


def test_pods_share_the_checkout_and_are_not_root() -> None:
    pod, container = pod_of(
        render("kubernetes", claim="shared", shm_size="16Gi", secret="keys").job_manifest
    )
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]} == {
        "/clickmill": {"persistentVolumeClaim": {"claimName": "shared"}},
        "/dev/shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
    }
    assert container["workingDir"] == "/clickmill"
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["envFrom"] == [{"secretRef": {"name": "keys", "optional": True}}]


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("0", "prefect flow-run execute"),
        ("1", "clickmill stage join"),
        ("10", "clickmill stage join"),
    ],
)
def test_first_pod_runs_the_flow_and_the_others_join(index: str, said: str, tmp_path: Path) -> None:
    """The container's own command, by a shell."""
    for name in ("prefect", "clickmill"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    _, container = pod_of(render("kubernetes").job_manifest)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": index}
    command = [
        *container["command"],
        "prefect",
        "flow-run",
        "execute",
    ]  # Prefect's worker puts the flow run's command into args
    assert "args" not in container
    assert subprocess.check_output(command, env=env, text=True).strip() == said


def test_prefect_docker_takes_the_template() -> None:
    worker = pytest.importorskip("prefect_docker.worker")
    stock = worker.DockerWorker.get_default_base_job_template()["variables"]["properties"]
    assert set(stock) - set(TEMPLATES["docker"]["variables"]["properties"]) == {
        "container_create_kwargs"
    }
    job = prepared("docker", worker.DockerWorkerJobConfiguration, **RUN)
    assert not set(job.container_create_kwargs) & set(type(job).model_fields)  # those it would drop
    assert (pet(job.env), job.get_network_mode(), job.command) == (
        OF_RUN,
        "host",
        "prefect flow-run execute",
    )


@pytest.mark.parametrize("variables", [{}, RUN])
def test_prefect_kubernetes_takes_the_template(variables: dict[str, Any]) -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker")
    stock = worker.KubernetesWorker.get_default_base_job_template()["variables"]["properties"]
    assert set(stock) <= set(TEMPLATES["kubernetes"]["variables"]["properties"])
    manifest = prepared(
        "kubernetes", worker.KubernetesWorkerJobConfiguration, **variables
    ).job_manifest
    pod, container = pod_of(manifest)
    assert container["args"] == ["prefect", "flow-run", "execute"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert pet(env) == (OF_RUN if variables else {"PET_NNODES": "1"})
    assert (
        env["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    )  # a lost pod: a new Job goes on from the checkpoint
    del pod["completions"], pod["parallelism"]
    Draft202012Validator(JOB_SCHEMA).validate(manifest)
