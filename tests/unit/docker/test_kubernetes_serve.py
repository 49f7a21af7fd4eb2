"""The objects of docker/kubernetes: their schemas, and how they refer to each other and the image.

Nobody publishes a schema of an InferenceService in a package. A custom predictor is a pod and some
fields of KServe's own, so the pod is validated by the schema of Kubernetes. How the whole file was
validated by hand is in docs/guides/docker-kubernetes.md.
"""

import json
import re
import tomllib
from typing import Any

import pytest
from jsonschema import ValidationError
from ruamel.yaml import YAML
from typer.main import get_command

from flows.cli.main import app
from serving.options import parse_models
from serving.server import TOKEN_VARIABLE
from tests.factories.deployments import kubernetes_validator
from tests.factories.support import ROOT

FOLDER = ROOT / "docker" / "kubernetes"
# Fields that KServe's ComponentExtensionSpec adds to a pod, as far as the example uses them.
KSERVE_FIELDS = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
Object = dict[str, Any]


def read_objects(name: str) -> dict[str, Object]:
    """Return the objects of a file, by kind."""
    found = list(YAML(typ="safe").load_all(FOLDER / name))
    objects = {one["kind"]: one for one in found}
    assert len(objects) == len(found)
    return objects


SERVE = read_objects("serve.yaml")
KSERVE = read_objects("kserve.yaml")["InferenceService"]
PODS: dict[str, Object] = {
    "Deployment": SERVE["Deployment"]["spec"]["template"]["spec"],
    "InferenceService": {
        key: value for key, value in KSERVE["spec"]["predictor"].items() if key not in KSERVE_FIELDS
    },
}
each_pod = pytest.mark.parametrize("kind", PODS)


def container_of(kind: str) -> Object:
    """Return the only container of a pod."""
    (container,) = PODS[kind]["containers"]
    return dict(container)


def image_command() -> list[str]:
    """Return the command of docker/serve.Dockerfile."""
    text = (ROOT / "docker" / "serve.Dockerfile").read_text(encoding="utf-8")
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    return list(json.loads(command))


@pytest.mark.parametrize("kind", ["Deployment", "Service", "HorizontalPodAutoscaler"])
def test_an_object_obeys_the_schema_of_kubernetes(kind: str) -> None:
    validator = kubernetes_validator(kind)
    validator.validate(SERVE[kind])
    with pytest.raises(ValidationError, match="misspelt"):
        validator.validate(SERVE[kind] | {"misspelt": 1})


def test_there_is_no_other_object() -> None:
    assert {*SERVE} == {"Deployment", "Service", "HorizontalPodAutoscaler"}
    assert KSERVE["apiVersion"] == "serving.kserve.io/v1beta1"
    assert {*KSERVE} == {"apiVersion", "kind", "metadata", "spec"}
    assert {*KSERVE["spec"]} == {"predictor"}


@each_pod
def test_a_pod_obeys_the_schema_of_kubernetes(kind: str) -> None:
    kubernetes_validator("PodSpec").validate(PODS[kind])


@each_pod
def test_a_pod_runs_the_image_of_this_version(kind: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container_of(kind)["image"] == f"clickmill-serve:{version}"


@each_pod
def test_a_pod_has_no_right_that_it_does_not_need(kind: str) -> None:
    pod, container = PODS[kind], container_of(kind)
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        assert mount.get("readOnly") or "emptyDir" in volumes[mount["name"]], mount["mountPath"]


def test_the_deployment_shows_the_image_the_models_of_the_checkout() -> None:
    """The image's own command reads /models/production, so the link must be there."""
    command = image_command()
    assert command[:2] == ["clickmill", "serve"]
    assert "production=/models/production" in command
    container = container_of("Deployment")
    assert "command" not in container
    assert "args" not in container
    (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == "/models"]
    assert mount["subPath"] == "artifacts"


def test_kserve_mounts_what_the_server_reads() -> None:
    container = container_of("InferenceService")
    assert container["name"] == "kserve-container"  # KServe finds the container by this name
    assert container["args"][:2] == ["clickmill", "serve"]
    assert "clickmill=/mnt/models" in container["args"]  # where KServe copies STORAGE_URI
    env = {one["name"]: one["value"] for one in container["env"]}
    assert env["PROTOCOL"] == "v2"
    assert env["STORAGE_URI"].startswith("s3://")


@each_pod
def test_the_probes_ask_the_port_of_the_server(kind: str) -> None:
    container = container_of(kind)
    (port,) = container["ports"]
    assert port["containerPort"] == 8000
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in (port.get("name"), 8000)
    paths = {probe: container[probe]["httpGet"]["path"] for probe in container if "Probe" in probe}
    assert paths["startupProbe"] == paths["readinessProbe"]
    assert paths["readinessProbe"].endswith("ready")
    # A process whose model is damaged serves on or waits; a new one would do no better.
    assert not paths["livenessProbe"].endswith("ready")


def test_service_and_autoscaler_refer_to_the_deployment() -> None:
    deployment, service = SERVE["Deployment"], SERVE["Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert (
        service["spec"]["ports"][0]["targetPort"] == container_of("Deployment")["ports"][0]["name"]
    )
    scaler = SERVE["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]  # `apply` would undo the autoscaler's number
    (metric,) = scaler["metrics"]
    # A share of the request for the CPU, without which the autoscaler does nothing.
    assert metric["resource"]["target"]["type"] == "Utilization"
    assert metric["resource"]["name"] in container_of("Deployment")["resources"]["requests"]


@each_pod
def test_the_token_comes_from_a_secret(kind: str) -> None:
    container = container_of(kind)
    assert container["envFrom"] == [{"secretRef": {"name": "clickmill-serve"}}]
    assert TOKEN_VARIABLE not in str(container.get("env"))
    text = (FOLDER / "serve.yaml").read_text(encoding="utf-8")
    assert f"create secret generic clickmill-serve --from-literal={TOKEN_VARIABLE}=" in text
    # The server listens beyond the pod, and does not start without a token then.
    command = container.get("args", image_command())
    assert command[command.index("--host") + 1] == "0.0.0.0"
    assert "--allow-anonymous" not in command


@each_pod
def test_the_server_accepts_the_command(kind: str) -> None:
    words = container_of(kind).get("args", image_command())[1:]
    context = get_command(app).make_context("clickmill", words, resilient_parsing=False)
    name, command, rest = get_command(app).resolve_command(context, words)
    assert name == "serve"
    options = command.make_context(name, rest).params
    assert (options["host"], options["port"]) == ("0.0.0.0", 8000)
    assert len(parse_models(options["model"], "--model")) == 1
