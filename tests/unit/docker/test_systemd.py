"""docker/systemd/: the units as systemd reads them, and what it does not look at: Prefect's settings, secrets, the command lines."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from flows.cli.main import app
from tests.factories.support import ROOT
from tests.unit.docker.test_docker import load

UNITS = sorted((ROOT / "docker" / "systemd").iterdir())
BIN = "/opt/clickmill/.venv/bin/"
SERVER, WORKER = "clickmill-server.service", "clickmill-worker.service"
PREFECT = """
from prefect.settings import Settings
print(*Settings().to_environment_variables(exclude_unset=True))
"""


def values(name: str, key: str) -> list[str]:
    """What a unit gives a key, each time."""
    lines = (ROOT / "docker" / "systemd" / name).read_text(encoding="utf-8").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def environment(name: str) -> dict[str, str]:
    return dict(
        pair.split("=", 1) for line in values(name, "Environment") for pair in shlex.split(line)
    )


def command(name: str) -> list[str]:
    """ExecStart; its program without the folder, which must be the checkout's."""
    (line,) = values(name, "ExecStart")
    assert line.startswith(BIN)
    return shlex.split(line.removeprefix(BIN))


def test_systemd_finds_nothing(tmp_path: Path) -> None:
    """Programs must be there to be run: this environment's stand for those at /opt. Of an unknown key it only speaks, and exits with 0."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here: the units are checked where it is")
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
def test_prefect_knows_each_of_its_settings(name: str, tmp_path: Path) -> None:
    """Prefect ignores a misspelt variable in silence."""
    ours = {key: value for key, value in environment(name).items() if key.startswith("PREFECT_")}
    known = subprocess.check_output(
        [sys.executable, "-c", PREFECT],
        env={"HOME": str(tmp_path), **ours},
        cwd=tmp_path,
        text=True,
    )
    assert ours
    assert set(ours) <= set(known.split())


def test_runs_have_a_heartbeat_and_secrets_a_file() -> None:
    assert environment(WORKER)["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    for name in (SERVER, WORKER):
        (file,) = values(name, "EnvironmentFile")
        assert re.fullmatch(r"-/etc/clickmill/\w+\.env", file)
        assert not [
            key for key in environment(name) if re.search(r"PASSWORD|SECRET|KEY|TOKEN|AUTH", key)
        ]


def test_the_server_is_this_machines_alone_and_the_worker_finds_it() -> None:
    serve = command(SERVER)
    assert serve[:3] == ["prefect", "server", "start"]
    assert serve[serve.index("--host") + 1] == "127.0.0.1"
    assert environment(WORKER)["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"


def test_the_worker_polls_the_pool_that_prefect_yaml_deploys_to() -> None:
    work = command(WORKER)
    assert work[:3] == ["prefect", "worker", "start"]
    assert {
        deployment["work_pool"]["name"] for deployment in load(ROOT / "prefect.yaml")["deployments"]
    } == {work[work.index("--pool") + 1]}


def test_health_is_a_command_of_ours() -> None:
    program, group, name = command("clickmill-health.service")
    assert program == "clickmill"
    assert name in get_command(app).commands[group].commands  # type: ignore[attr-defined]
    assert CliRunner().invoke(app, [group, name, "--help"]).exit_code == 0


def test_every_unit_is_installed_by_the_guide() -> None:
    guide = (ROOT / "docs" / "guides" / "services.md").read_text(encoding="utf-8")
    assert [
        unit.name for unit in UNITS if unit.suffix == ".service" and unit.stem not in guide
    ] == []
