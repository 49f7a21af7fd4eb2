"""The cluster of Ray in docker/kubernetes/servers.yaml: its pods, the image, and how it is joined.

Nobody publishes a schema of a RayCluster in a package, so its pods are validated by the schema of
Kubernetes, and its own fields are listed here. docs/guides/docker-kubernetes.md says how the whole
file was validated by hand.
"""

import re
import tomllib
from typing import Any

import pytest
from jsonschema import ValidationError
from ruamel.yaml import YAML

from tests.factories.deployments import kubernetes_validator
from tests.factories.support import ROOT

PATH = ROOT / "docker" / "kubernetes" / "servers.yaml"
CLUSTER: dict[str, Any] = YAML(typ="safe").load(PATH)
SPEC = CLUSTER["spec"]
(WORKERS,) = SPEC["workerGroupSpecs"]
GROUPS = {"head": SPEC["headGroupSpec"], "workers": WORKERS}
each_group = pytest.mark.parametrize("name", GROUPS)


def pod_of(name: str) -> dict[str, Any]:
    """Return the pod of a group, and check that it has nothing beside its specification."""
    template = GROUPS[name]["template"]
    assert {*template} == {"spec"}
    return dict(template["spec"])


def container_of(name: str) -> dict[str, Any]:
    """Return the only container of a pod."""
    (container,) = pod_of(name)["containers"]
    return dict(container)


def test_the_cluster_has_the_fields_that_were_validated() -> None:
    assert (CLUSTER["apiVersion"], CLUSTER["kind"]) == ("ray.io/v1", "RayCluster")
    assert {*CLUSTER} == {"apiVersion", "kind", "metadata", "spec"}
    assert {*SPEC} == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert {*SPEC["headGroupSpec"]} == {"rayStartParams", "template"}
    replicas = {"replicas", "minReplicas", "maxReplicas"}
    assert {*WORKERS} == {"groupName", *replicas, "rayStartParams", "template"}
    assert len({WORKERS[name] for name in replicas}) == 1


@each_group
def test_a_pod_obeys_the_schema_of_kubernetes(name: str) -> None:
    validator = kubernetes_validator("PodSpec")
    validator.validate(pod_of(name))
    with pytest.raises(ValidationError, match="misspelt"):
        validator.validate(pod_of(name) | {"misspelt": 1})


def test_the_cluster_demands_a_token() -> None:
    assert SPEC["authOptions"] == {"mode": "token"}


@each_group
def test_a_pod_runs_the_training_image_with_the_locked_ray(name: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container_of(name)["image"] == f"clickmill-train:{version}"
    assert f"-t clickmill-train:{version} " in PATH.read_text()
    assert f"ray=={SPEC['rayVersion']} " in (ROOT / "requirements" / "servers.in").read_text()
    assert "ARG SERVERS" in (ROOT / "docker" / "train.Dockerfile").read_text()


@each_group
def test_a_pod_has_no_right_that_it_does_not_need(name: str) -> None:
    pod, container = pod_of(name), container_of(name)
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {volume["name"] for volume in pod["volumes"]} == {
        mount["name"] for mount in container["volumeMounts"]
    }


@each_group
def test_the_probes_replace_those_of_kuberay_and_ask_a_port_of_ray(name: str) -> None:
    """KubeRay's own ones ask the dashboard, and a pod of this image would never be ready."""
    container = container_of(name)
    (port,) = container["ports"]
    start = GROUPS[name]["rayStartParams"]
    assert str(port["containerPort"]) == start.get("node-manager-port", "6379")
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["tcpSocket"]["port"] == port["containerPort"]


def test_no_actor_runs_in_the_pod_of_the_driver() -> None:
    assert SPEC["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "num-cpus" not in WORKERS["rayStartParams"]  # the limit of the container
    assert "cpu" in container_of("workers")["resources"]["limits"]


def test_no_dashboard_runs_and_no_port_is_open_outside_of_the_cluster() -> None:
    start = SPEC["headGroupSpec"]["rayStartParams"]
    assert start["include-dashboard"] == "false"
    assert "dashboard-host" not in start
    for name in GROUPS:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & {*pod_of(name)}
        assert not [port for port in container_of(name)["ports"] if "hostPort" in port]
    assert "headService" not in SPEC["headGroupSpec"]  # KubeRay's own has no address outside


@each_group
def test_a_pod_has_the_memory_that_it_asks_for(name: str) -> None:
    resources = container_of(name)["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert float(resources["requests"]["cpu"]) >= 1


def test_the_commands_select_the_pods_of_this_cluster() -> None:
    (cluster,) = re.findall(r"-l ray\.io/cluster=([^,]+),ray\.io/node-type=head", PATH.read_text())
    assert cluster == CLUSTER["metadata"]["name"]


@each_group
def test_the_options_of_ray_are_texts(name: str) -> None:
    assert all(isinstance(value, str) for value in GROUPS[name]["rayStartParams"].values())


def test_the_address_is_that_of_the_service_that_kuberay_makes() -> None:
    (address,) = re.findall(r"train\.servers\.address: (\S+)", PATH.read_text())
    assert address == f"{CLUSTER['metadata']['name']}-head-svc:6379"
