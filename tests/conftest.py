"""Checkouts for tests that run DVC or Prefect: clones of this one, with a small sample log.

Uncommitted work is included.
"""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from common.cpp import cache_folder
from common.logs import configure_logging
from common.startup import search_garbage_less_often
from tests.factories.support import ROOT

search_garbage_less_often()  # the tests import everything, which takes a quarter less time so

NUM_ROWS = 3000
OURS = ("PREFECT_", "DVC_", "GIT_")


@pytest.fixture(autouse=True)
def log_lines() -> None:
    """Print the log lines of the stages, as the command line does."""
    configure_logging()


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of commands, without the user's settings of Prefect, DVC and git.

    The user's cache stays, so that libraries are not compiled again in each test session.
    """
    home = tmp_path_factory.mktemp("home")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    identity = {
        f"GIT_{role}_{what}": "test@localhost"
        for role in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]])
    prefect = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_API_PORT": str(free_port()),  # no server runs there
    }
    places = {"PATH": path, "HOME": str(home), "XDG_CACHE_HOME": str(cache_folder().parent)}
    return inherited | identity | prefect | places | {"DO_NOT_TRACK": "1"}


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A git repository with every file that this one tracks or does not ignore."""
    target = tmp_path_factory.mktemp("repository")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    set_param(target, "sample", "num_rows", NUM_ROWS)
    # Tests that need an ensemble or a serving bundle set these themselves.
    set_param(target, "train", "ensemble_size", 1)
    set_param(target, "export", "runtime", None)
    for command in (
        ["git", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "commit", "-q", "-m", "all"],
    ):
        subprocess.run(command, cwd=target, env=environment, check=True)
    return target


@dataclass(frozen=True)
class Project:
    """A checkout, and the environment to run commands in it."""

    root: Path
    environment: dict[str, str]

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start a command in a session of its own; communicate() reads its output."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            # the code of this checkout, not of the one that is installed
            env=self.environment | {"PYTHONPATH": str(self.root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, code: int = 0, timeout_s: float = 300) -> str:
        """Run a command, check its exit code, and return its output, both streams."""
        child = self.start(*command)
        output, _ = child.communicate(timeout=timeout_s)
        assert child.returncode == code, output
        return output

    def set_param(self, section: str, name: str, value: object) -> None:
        """Change one value of this checkout's params.yaml."""
        set_param(self.root, section, name, value)

    @property
    def lock(self) -> str:
        """The text of dvc.lock."""
        return (self.root / "dvc.lock").read_text()

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Return the live processes in this checkout whose command line contains word.

        Prefect's own server and worker are not included.
        """
        return [process for process in psutil.process_iter() if self._has(process, word)]

    def _has(self, process: psutil.Process, word: str) -> bool:
        try:
            command = " ".join(process.cmdline())
            at_home = Path(process.cwd()) == self.root and process.status() != psutil.STATUS_ZOMBIE
            return (
                at_home
                and word in command
                and "prefect worker" not in command
                and "prefect server" not in command
            )
        except psutil.Error:
            return False


def clone(repository: Path, root: Path, environment: dict[str, str]) -> Project:
    """Clone a repository into root."""
    subprocess.run(["git", "clone", "-q", str(repository), str(root)], env=environment, check=True)
    return Project(root, environment)


@pytest.fixture
def project(repository: Path, tmp_path: Path, environment: dict[str, str]) -> Project:
    """A fresh checkout."""
    return clone(repository, tmp_path / "project", environment)


@pytest.fixture(scope="session")
def finished(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Project:
    """A checkout after an undisturbed `dvc repro`; tests must not change it."""
    project = clone(repository, tmp_path_factory.mktemp("finished") / "project", environment)
    project.run("dvc", "repro")
    return project


@pytest.fixture
def copy(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished checkout, with its artifacts and DVC's cache."""
    shutil.copytree(finished.root, tmp_path / "copy", symlinks=True)
    return Project(tmp_path / "copy", finished.environment)


def set_param(root: Path, section: str, name: str | None, value: object) -> None:
    """Change one value of root/params.yaml; name None replaces the whole section."""
    yaml, path = YAML(), root / "params.yaml"
    values = yaml.load(path.read_text())
    if name is None:
        values[section] = value
    else:
        values[section][name] = value
    with path.open("w") as file:
        yaml.dump(values, file)
