"""The templates of the work pools, as Prefect renders them, without an engine or a cluster."""

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
from prefect.utilities.schema_tools.validation import ValidationError, validate
from prefect.utilities.templating import find_placeholders
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from tests.factories.deployments import kubernetes_validator
from tests.factories.support import ROOT

TEMPLATES = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "docker" / "pools").glob("*.json"))
}
JOB = kubernetes_validator("Job")
# Rendering asks the server for blocks and variables only, and no template names one.
OFFLINE = PrefectClient("http://127.0.0.1:9/api")
RUN = {"nodes": 2, "devices": 8, "endpoint": "first:29400"}
RUN_ENV = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "8", "PET_RDZV_ENDPOINT": "first:29400"}
each_kind = pytest.mark.parametrize("kind", TEMPLATES)


class Rendered(BaseJobConfiguration, extra="allow"):
    """A rendered job of any kind of pool, without the checks of that kind."""


def render(kind: str, cls: Any = Rendered, **variables: Any) -> Any:
    """Render the template of a kind of pool with these variables."""
    return asyncio.run(cls.from_template_and_values(TEMPLATES[kind], variables, client=OFFLINE))


def prepared(kind: str, cls: Any, **variables: Any) -> Any:
    """Render a job and prepare it for a flow run, as the worker does before it starts the job."""
    job = render(kind, cls, **variables)
    job.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="loud-tiger"))
    return job


def torchrun_env(env: dict[str, str]) -> dict[str, str]:
    """Return the environment variables that torchrun reads."""
    return {name: value for name, value in env.items() if name.startswith("PET_")}


def pod_of(manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the pod of a Job's manifest, and its container."""
    pod = manifest["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def test_there_is_a_template_for_each_kind_of_pool() -> None:
    assert list(TEMPLATES) == ["docker", "kubernetes", "process"]


@each_kind
def test_every_placeholder_is_a_variable_and_every_variable_is_used(kind: str) -> None:
    variables = set(TEMPLATES[kind]["variables"]["properties"])
    placeholders = find_placeholders(TEMPLATES[kind]["job_configuration"])
    assert {placeholder.name for placeholder in placeholders} == variables
    assert {*RUN} <= variables


@each_kind
@pytest.mark.parametrize(
    "variables",
    [
        {"command": "touch /tmp/evil"},
        {"env": {"LD_PRELOAD": "evil.so"}},
        {"env.LD_PRELOAD": "evil.so"},
        {"working_dir": "/tmp"},
        {"image": "evil"},
        {"volumes": ["/:/host"]},
        {"privileged": True},
        {"network_mode": "host"},
        {"namespace": "kube-system"},
        {"service_account_name": "admin"},
        {"claim": "other"},
        {"secret": "other"},
        {"job_manifest": {}},
        {"labels": {"a": "b"}},
        {"endpoint": "{{ prefect.variables.secret }}:1"},
        {"endpoint": "a b:1"},
    ],
    ids=str,
)
def test_a_flow_run_cannot_choose_what_is_executed_where(
    kind: str, variables: dict[str, Any]
) -> None:
    """The server checks the variables of a run by this schema: `validate` is its own function.

    That is needed for `env`, which Prefect's worker accepts even if no variable has this name.
    """
    schema = TEMPLATES[kind]["variables"]
    validate({**RUN}, schema, raise_on_error=True)
    with pytest.raises(ValidationError):
        validate({**RUN, **variables}, schema, raise_on_error=True)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
@pytest.mark.parametrize(
    "wrong", [{"interface": "eth0 evil"}, {"interface": "{{ x }}"}, {"shm_size": "all"}], ids=str
)
def test_a_text_of_a_flow_run_has_a_fixed_form(kind: str, wrong: dict[str, Any]) -> None:
    schema = TEMPLATES[kind]["variables"]
    validate(
        {"interface": "ib0", "shm_size": "16Gi" if kind == "kubernetes" else "16g"},
        schema,
        raise_on_error=True,
    )
    with pytest.raises(ValidationError):
        validate(wrong, schema, raise_on_error=True)


@each_kind
def test_the_defaults_fit_the_schema_of_the_variables(kind: str) -> None:
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


@each_kind
def test_the_variables_of_a_run_reach_torchrun(kind: str) -> None:
    assert torchrun_env(render(kind, **RUN).env) == RUN_ENV


@pytest.mark.parametrize("kind", ["docker", "process"])
def test_a_variable_that_is_not_set_leaves_the_value_to_params_yaml(kind: str) -> None:
    assert torchrun_env(prepared(kind, Rendered).env) == {}
    assert torchrun_env(prepared(kind, Rendered, nodes=None, devices=None, endpoint=None).env) == {}
    assert torchrun_env(prepared(kind, Rendered, devices=8).env) == {"PET_NPROC_PER_NODE": "8"}


def test_the_process_template_fixes_everything_but_three_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock = ProcessWorker.get_default_base_job_template()["job_configuration"]
    ours = TEMPLATES["process"]
    assert set(ours["variables"]["properties"]) == {*RUN}
    assert set(ours["job_configuration"]) <= set(stock)
    job = prepared("process", ProcessJobConfiguration, command="evil", working_dir="/", **RUN)
    assert job.working_dir is None
    assert job.command.endswith(" -m prefect.engine")
    assert torchrun_env(job.env) == RUN_ENV
    # A run has the URL and the login in its environment.
    assert job.env["PREFECT_PLUGINS_ENABLED"] == "0"
    monkeypatch.setenv("PET_NNODES", "4")  # in the worker's environment
    assert torchrun_env(prepared("process", ProcessJobConfiguration, nodes=None).env) == {
        "PET_NNODES": "4"
    }


def test_a_container_has_gpus_shared_memory_and_the_network_of_the_host() -> None:
    job = render("docker", shm_size="16g", interface="ib0")
    assert job.image == image_of_dockerfile()
    assert job.volumes == [".:/clickmill"]
    assert job.network_mode == "host"
    assert job.env == {
        "DO_NOT_TRACK": "1",
        "NCCL_DEBUG": "WARN",
        "NCCL_SOCKET_IFNAME": "ib0",
        "GLOO_SOCKET_IFNAME": "ib0",
    }
    host = HostConfig(version="1.44", **job.container_create_kwargs)
    (gpus,) = host["DeviceRequests"]
    assert host["Init"] is True
    assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges:true"])
    assert host["ShmSize"] == 16 << 30
    assert (gpus["Count"], gpus["Capabilities"]) == (-1, [["gpu"]])
    options = render("docker", device_requests=[]).container_create_kwargs
    assert HostConfig(version="1.44", **options)["DeviceRequests"] == []


def image_of_dockerfile() -> str:
    """Return the tag of the build for GPUs in the comment of docker/train.Dockerfile."""
    lines = (ROOT / "docker" / "train.Dockerfile").read_text().splitlines()
    (line,) = [line for line in lines if "VARIANT=cuda -t " in line]
    return line.split(" -t ")[1].split()[0]


@pytest.mark.parametrize(
    "variables",
    [{}, RUN, {"nodes": 64, "interface": "eth0", "memory_limit": "64Gi", "cpu_request": "8"}],
)
def test_a_job_obeys_the_schema_of_kubernetes(variables: dict[str, Any]) -> None:
    manifest = render("kubernetes", **variables).job_manifest
    pod, container = pod_of(manifest)
    # Prefect's worker refuses a pod without these two keys, which Kubernetes ignores there.
    assert (pod.pop("completions"), pod.pop("parallelism")) == (1, 1)
    # The worker refuses other values of these as well.
    assert (pod["restartPolicy"], container["name"]) == ("Never", "prefect-job")
    JOB.validate(manifest)


def test_a_job_has_a_pod_on_each_machine_with_a_rank_on_each_gpu() -> None:
    job = render("kubernetes", **RUN)
    spec, (pod, container) = job.job_manifest["spec"], pod_of(job.job_manifest)
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (2, 2, "Indexed")
    assert str(spec["completions"]) == job.env["PET_NNODES"]
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job.env["PET_NPROC_PER_NODE"]
    (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    labels = spec["template"]["metadata"]["labels"]
    assert term["labelSelector"]["matchLabels"].items() <= labels.items()
    assert spec["backoffLimit"] == 0
    # The end of the flow ends the pods that have joined.
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}


def test_a_job_without_variables_has_one_pod_without_gpu() -> None:
    job = render("kubernetes")
    assert (job.job_manifest["spec"]["completions"], job.env["PET_NNODES"]) == (1, "1")
    assert "PET_NPROC_PER_NODE" not in job.env
    assert pod_of(job.job_manifest)[1]["resources"]["limits"] == {}


def test_pods_share_the_checkout_and_are_not_root() -> None:
    pod, container = pod_of(render("kubernetes", shm_size="16Gi").job_manifest)
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]} == {
        "/clickmill": {"persistentVolumeClaim": {"claimName": "clickmill"}},
        "/dev/shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
    }
    assert container["workingDir"] == "/clickmill"
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["envFrom"] == [{"secretRef": {"name": "clickmill", "optional": True}}]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("0", "prefect flow-run execute"),
        ("1", "clickmill stage join"),
        ("10", "clickmill stage join"),
    ],
)
def test_the_first_pod_runs_the_flow_and_the_others_join(
    index: str, expected: str, tmp_path: Path
) -> None:
    """A shell runs the container's command; Prefect's worker adds the flow run's as arguments."""
    for name in ("prefect", "clickmill"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    _, container = pod_of(render("kubernetes").job_manifest)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": index}
    assert "args" not in container
    command = [*container["command"], "prefect", "flow-run", "execute"]
    assert subprocess.check_output(command, env=env, text=True).strip() == expected


def test_prefect_docker_accepts_the_template() -> None:
    worker = pytest.importorskip("prefect_docker.worker")
    stock = worker.DockerWorker.get_default_base_job_template()["job_configuration"]
    assert set(TEMPLATES["docker"]["job_configuration"]) <= set(stock)
    job = prepared("docker", worker.DockerWorkerJobConfiguration, **RUN)
    # Prefect would ignore an option here that is a field of the job as well.
    assert not set(job.container_create_kwargs) & set(type(job).model_fields)
    assert torchrun_env(job.env) == RUN_ENV
    assert job.get_network_mode() == "host"
    assert job.command == "prefect flow-run execute"


@pytest.mark.parametrize("variables", [{}, RUN])
def test_prefect_kubernetes_accepts_the_template(variables: dict[str, Any]) -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker")
    stock = worker.KubernetesWorker.get_default_base_job_template()["job_configuration"]
    assert set(TEMPLATES["kubernetes"]["job_configuration"]) <= set(stock)
    manifest = prepared(
        "kubernetes", worker.KubernetesWorkerJobConfiguration, **variables
    ).job_manifest
    pod, container = pod_of(manifest)
    assert container["args"] == ["prefect", "flow-run", "execute"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert torchrun_env(env) == (RUN_ENV if variables else {"PET_NNODES": "1"})
    # If the pod is lost, a new Job resumes from the checkpoint.
    assert env["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    del pod["completions"], pod["parallelism"]
    JOB.validate(manifest)
