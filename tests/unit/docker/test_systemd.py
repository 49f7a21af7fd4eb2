"""The systemd units: their syntax, Prefect's settings, secrets and command lines."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.config.loading import read_yaml
from flows.cli.main import app
from tests.factories.deployments import known_settings
from tests.factories.support import ROOT

UNITS = sorted((ROOT / "docker" / "systemd").iterdir())
BIN = "/opt/clickmill/.venv/bin/"
SERVER, WORKER = "clickmill-server.service", "clickmill-worker.service"


def values(name: str, key: str) -> list[str]:
    """Return the values of a key of a unit, one for each of its lines."""
    lines = (ROOT / "docker" / "systemd" / name).read_text(encoding="utf-8").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def environment(name: str) -> dict[str, str]:
    """Return the environment variables that a unit sets."""
    return dict(
        pair.split("=", 1) for line in values(name, "Environment") for pair in shlex.split(line)
    )


def command(name: str) -> list[str]:
    """Return the words of ExecStart, the program without the folder of the installation."""
    (line,) = values(name, "ExecStart")
    assert line.startswith(BIN)
    return shlex.split(line.removeprefix(BIN))


def test_systemd_finds_nothing(tmp_path: Path) -> None:
    """Check the units with systemd-analyze, which exits with 0 even if it prints a warning.

    It checks that programs exist, so those of this environment replace the ones in /opt.
    """
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace(BIN, f"{Path(sys.executable).parent}/")
        (tmp_path / unit.name).write_text(
            text.replace("=/opt/clickmill\n", f"={ROOT}\n"), encoding="utf-8"
        )
    verify = subprocess.run(
        ["systemd-analyze", "verify", *(tmp_path / unit.name for unit in UNITS)],
        capture_output=True,
        text=True,
    )
    assert (verify.returncode, verify.stdout + verify.stderr) == (0, "")


@pytest.mark.parametrize("name", [SERVER, WORKER])
def test_prefect_reads_each_of_its_variables(name: str, tmp_path: Path) -> None:
    variables = environment(name)
    settings = {key: value for key, value in variables.items() if key.startswith("PREFECT_")}
    assert settings
    assert set(settings) <= known_settings(settings, tmp_path)


def test_runs_send_heartbeats_and_secrets_are_in_a_file() -> None:
    assert environment(WORKER)["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    for name in (SERVER, WORKER):
        (file,) = values(name, "EnvironmentFile")
        assert re.fullmatch(r"/etc/clickmill/\w+\.env", file)  # a - would make it optional
        assert not [
            key for key in environment(name) if re.search(r"PASSWORD|SECRET|KEY|TOKEN|AUTH", key)
        ]


@pytest.mark.parametrize(
    ("name", "variable"),
    [(SERVER, "PREFECT_SERVER_API_AUTH_STRING"), (WORKER, "PREFECT_API_AUTH_STRING")],
)
@pytest.mark.parametrize(("login", "code"), [("ops:pass", 0), ("", 2), (None, 2)])
def test_a_unit_without_a_login_does_not_start(
    name: str, variable: str, login: str | None, code: int
) -> None:
    """ExecStartPre is executed as systemd does it: $$ is a $, and no variable is replaced."""
    (line,) = values(name, "ExecStartPre")
    check = subprocess.run(
        shlex.split(line.replace("$$", "$")),
        env={} if login is None else {variable: login},
        capture_output=True,
        text=True,
    )
    assert check.returncode == code
    (file,) = values(name, "EnvironmentFile")
    assert (f"{variable}: is missing in {file}" in check.stderr) == bool(code)
    assert "ops:pass" not in check.stdout + check.stderr


@pytest.mark.parametrize("name", [unit.name for unit in UNITS if unit.suffix == ".service"])
def test_a_unit_has_no_right_of_root(name: str) -> None:
    assert values(name, "User") == ["clickmill"]
    assert values(name, "CapabilityBoundingSet") == [""]
    for key in ("NoNewPrivileges", "PrivateTmp", "RestrictSUIDSGID", "RestrictNamespaces"):
        assert values(name, key) == ["yes"], key
    assert values(name, "ProtectSystem") in (["full"], ["strict"])
    # A worker needs the devices of GPUs, and executes kernels that it compiles.
    for key in ("ProtectClock", "PrivateDevices", "MemoryDenyWriteExecute"):
        assert not values(WORKER, key), key


def test_only_this_machine_reaches_the_server_and_the_worker_finds_it() -> None:
    words = command(SERVER)
    assert words[:3] == ["prefect", "server", "start"]
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert environment(WORKER)["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"


def test_the_worker_polls_the_pool_that_prefect_yaml_deploys_to() -> None:
    words = command(WORKER)
    assert words[:3] == ["prefect", "worker", "start"]
    deployments = read_yaml(ROOT / "prefect.yaml")["deployments"]
    pools = {deployment["work_pool"]["name"] for deployment in deployments}
    assert pools == {words[words.index("--pool") + 1]}


def test_the_health_unit_calls_a_command_of_clickmill() -> None:
    program, *words = command("clickmill-health.service")
    assert program == "clickmill"
    assert words
    assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0


def test_the_guide_installs_every_unit() -> None:
    guide = (ROOT / "docs" / "guides" / "services.md").read_text(encoding="utf-8")
    services = [unit for unit in UNITS if unit.suffix == ".service"]
    assert [unit.name for unit in services if unit.stem not in guide] == []
