"""The images and the compose file, checked without a Docker engine.

hadolint checks the Dockerfiles; the compose file is checked by its schema and by its references.
"""

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from common.config.loading import read_yaml
from serving.server import TOKEN_VARIABLE
from tests.factories.deployments import known_settings
from tests.factories.support import ROOT

COMPOSE = ROOT / "docker" / "compose.yaml"
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
BIN = Path(sys.executable).parent
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+[\w.-]*")
DIGEST = r"@sha256:[0-9a-f]{64}"
# ${NAME:?message}: Compose refuses to start, with the message, where NAME is not set.
FROM_ENVIRONMENT = re.compile(r"\$\{[A-Z0-9_]+:\?[^}]+\}")
each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def compose() -> Any:
    """The content of the compose file."""
    return read_yaml(COMPOSE)


@pytest.fixture(scope="module")
def services(compose: Any) -> dict[str, Any]:
    """The services of the compose file."""
    return dict(compose["services"])


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile in order, each with its arguments.

    Continued lines are joined, and comments are left out.
    """
    lines = [
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word, rest)
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def test_there_is_an_image_for_each_lock() -> None:
    assert [path.name for path in DOCKERFILES] == [
        "ingest.Dockerfile",
        "serve.Dockerfile",
        "train.Dockerfile",
    ]


@each_dockerfile
def test_hadolint_finds_nothing(path: Path) -> None:
    lint = subprocess.run([BIN / "hadolint", path], capture_output=True, text=True)
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")


@each_dockerfile
def test_an_image_is_pinned_hashed_and_not_root(path: Path) -> None:
    steps = instructions(path)
    (base,) = [rest for word, rest in steps if word == "FROM"]
    assert re.fullmatch(rf"python:3\.\d+\.\d+-slim-\w+{DIGEST}", base), (
        f"{base}: pin Python to its patch release, Debian to its name, and the image to its digest"
    )
    lock = path.name.split(".")[0]
    assert any(
        f"--no-deps --require-hashes -r requirements/{lock}.txt" in rest for _, rest in steps
    )
    users = [rest for word, rest in steps if word == "USER"]
    assert users, "without USER the container runs as root"
    assert users[-1] not in ("root", "0")


@each_dockerfile
def test_every_file_that_an_image_copies_exists_and_is_not_ignored(path: Path) -> None:
    ignored = [
        line.rstrip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    sources = [
        source
        for word, rest in instructions(path)
        if word == "COPY"
        for source in rest.split()[:-1]
        if not source.startswith("--")
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    sources += [pattern.rstrip("*") for pattern in packages]
    sources += [project["project"]["readme"], "pyproject.toml", "requirements/ingest.in"]
    for source in sources:
        assert (ROOT / source).exists(), f"{path.name} copies {source}, which is not there"
        parts = [*Path(source).parts, source]
        assert not [
            (part, pattern) for part in parts for pattern in ignored if fnmatch(part, pattern)
        ]


def test_secrets_and_data_stay_out_of_the_images() -> None:
    assert {".git/", ".venv/", ".env", "artifacts/", "runs/", "data/"} <= set(
        (ROOT / ".dockerignore").read_text().split()
    )


def locked(name: str) -> set[str]:
    """Return the packages of a lock file."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    return set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE))


def test_only_the_train_image_has_torch_in_both_variants() -> None:
    ingest, serve, train = (
        "\n".join(" ".join(step) for step in instructions(path)) for path in DOCKERFILES
    )
    assert "torch" not in ingest + serve
    assert "torch" not in locked("ingest") | locked("serve")
    assert "ARG VARIANT=cpu" in train
    assert 'TORCH_VARIANT="${VARIANT}" sh requirements/install_torch.sh' in train


def test_the_serve_image_has_what_serves_and_neither_prefect_nor_dvc_nor_a_compiler() -> None:
    packages = locked("serve")
    assert {"onnxruntime", "uvicorn", "polars", "numpy"} <= packages
    assert not packages & {"prefect", "dvc", "dvc-s3", "onnx", "pandas", "matplotlib"}
    assert "apt-get" not in str(instructions(ROOT / "docker" / "serve.Dockerfile"))


def test_the_train_image_reads_the_version_of_torch_from_the_makefile() -> None:
    (script,) = re.findall(r"sed -n '([^']+)'", DOCKERFILES[-1].read_text())
    version = subprocess.run(
        ["sed", "-n", script, ROOT / "Makefile"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert f"torch=={version} ;" in (ROOT / "requirements" / "overrides.txt").read_text()


def test_the_compose_file_obeys_its_schema() -> None:
    check = f"{BIN}/check-jsonschema --builtin-schema vendor.compose-spec"
    result = subprocess.run([*check.split(), COMPOSE], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_reference_in_the_compose_file_exists(compose: Any, services: dict[str, Any]) -> None:
    for name, service in services.items():
        for other, dependency in service.get("depends_on", {}).items():
            assert other in services, f"{name} depends on {other}"
            condition = dependency["condition"]
            assert condition != "service_healthy" or "healthcheck" in services[other], (
                f"{name} waits for the health of {other}"
            )
            ends_by_itself = services[other].get("restart") is None
            assert ends_by_itself == (condition == "service_completed_successfully"), (
                f"{name} waits for the end of {other}"
            )
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (COMPOSE.parent / source).is_dir(), (
                f"{name} mounts {source}"
            )
        for network in service.get("networks", []):
            assert network in compose.get("networks", {}), f"{name} joins {network}"
        if build := service.get("build"):
            assert (COMPOSE.parent / build["context"] / build["dockerfile"]).is_file(), (
                f"{name} is built from {build['dockerfile']}"
            )
        urls = [
            value
            for value in service.get("environment", {}).values()
            if str(value).startswith("http://")
        ]
        hosts = {url.split("//")[1].split(":")[0] for url in urls} - {"127.0.0.1"}
        assert hosts <= set(services), f"{name} calls {hosts - set(services)}"


def test_images_are_pinned_and_ports_stay_on_this_machine(services: dict[str, Any]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, service in services.items():
        image, at, digest = service["image"].partition("@")
        assert PINNED.fullmatch(image), f"{name}: {image} names no version"
        if "build" in service:
            assert image.endswith(f":{version}"), f"{name}: {image}, but this is {version}"
        else:
            assert re.fullmatch(DIGEST, at + digest), f"{name}: {image} is not pinned by its digest"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), (
            f"{name} listens beyond this machine"
        )


def test_no_service_has_a_capability_or_writes_outside_its_volumes(
    services: dict[str, Any],
) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert not service.get("privileged"), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        folders = [entry.split(":")[0] for entry in service["tmpfs"]]
        assert "/tmp" in folders, name
        home = service.get("environment", {}).get("PREFECT_HOME", "/home/clickmill/.prefect")
        if service.get("command", [""])[0] == "prefect":
            assert any(home.startswith(f"{folder}/") for folder in folders), name
    # Without a command that starts as root, the image of PostgreSQL needs no capability.
    assert services["postgres"]["user"] == "postgres"
    # Prefect would copy its web interface into site-packages.
    ui = services["server"]["environment"]["PREFECT_SERVER_UI_STATIC_DIRECTORY"]
    assert ui.startswith("/tmp/")


def test_without_a_login_nothing_starts(services: dict[str, Any]) -> None:
    """Compose refuses a variable that is not set or empty."""
    assert services["server"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"].startswith(
        "${PREFECT_AUTH:?"
    )
    for name in ("worker", "deploy"):
        login = services[name]["environment"]["PREFECT_API_AUTH_STRING"]
        assert login.startswith("${PREFECT_AUTH:?"), name
    assert services["serve"]["environment"][TOKEN_VARIABLE].startswith("${SERVE_TOKEN:?")


def test_the_server_of_scores_sees_the_models_only(services: dict[str, Any]) -> None:
    serve = services["serve"]
    assert serve["volumes"] == ["../artifacts:/models:ro"]
    assert {*serve["environment"]} == {TOKEN_VARIABLE}  # no key of the store or of Prefect


def test_secrets_come_from_the_environment(services: dict[str, Any]) -> None:
    secrets = [
        (name, key, value)
        for name, service in services.items()
        for key, value in service.get("environment", {}).items()
        if re.search(r"PASSWORD|SECRET|KEY|TOKEN|AUTH", key)
    ]
    assert secrets
    for name, key, value in secrets:
        assert FROM_ENVIRONMENT.fullmatch(value), f"{name}: {key} is written into the file"


def test_prefect_reads_each_of_its_variables(services: dict[str, Any], tmp_path: Path) -> None:
    settings = {
        key: value
        for service in services.values()
        for key, value in service.get("environment", {}).items()
        if key.startswith("PREFECT_")
    }
    assert "PREFECT_FLOWS_HEARTBEAT_FREQUENCY" in settings
    assert set(settings) <= known_settings(settings, tmp_path)


def test_the_worker_polls_the_pool_that_prefect_yaml_deploys_to(services: dict[str, Any]) -> None:
    worker = services["worker"]["command"]
    pool = worker[worker.index("--pool") + 1]
    deployments = read_yaml(ROOT / "prefect.yaml")["deployments"]
    assert {deployment["work_pool"]["name"] for deployment in deployments} == {pool}
