"""Real services on this machine: PostgreSQL, and OpenStack Swift as a store that speaks S3.

PostgreSQL comes from Debian's package, Swift from an environment of its own; `make test-services`
prepares both. Tests whose service is missing are skipped.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port

PASSWORD, KEY, SECRET = "postgres-pass", "clickmill:tester", "swift-secret"
DEBIAN_POSTGRES = "/usr/lib/postgresql"


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server that asks for a password."""

    binaries: Path
    data: Path
    port: int

    def control(self, *command: str) -> None:
        self.run(
            "pg_ctl",
            "--pgdata",
            str(self.data),
            "--wait",
            "--log",
            str(self.data.parent / "log"),
            *command,
        )

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.data.parent,
            "fsync": "off",
        }
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self.control("start", "--options", f"-p {self.port} {options}")

    def stop(self) -> None:
        self.control("stop", "--mode", "fast")

    def run(self, program: str, *arguments: str) -> None:
        """Run a program of PostgreSQL, as the user postgres if we are root, whom it refuses."""
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        subprocess.run(
            [self.binaries / program, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.data.parent,
            **user,
        )

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a Prefect server that uses this database, as in docker/compose.yaml."""
        values = {
            "DRIVER": "postgresql+asyncpg",
            "HOST": "127.0.0.1",
            "PORT": self.port,
            "USER": "prefect",
            "NAME": "postgres",
        }
        return {
            f"PREFECT_SERVER_DATABASE_{name}": str(value)
            for name, value in (values | {"PASSWORD": PASSWORD}).items()
        }


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    initdb = shutil.which("initdb")
    if not initdb:
        installed = sorted(Path(DEBIAN_POSTGRES).glob("*/bin/initdb"))
        if not installed:
            pytest.skip(f"no initdb on PATH or below {DEBIAN_POSTGRES}: install postgresql")
        initdb = str(installed[-1])
    # Not below pytest's folder, which the user postgres may not enter.
    scratch = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    if os.geteuid() == 0:
        shutil.chown(scratch, "postgres", "postgres")
    server = Postgres(Path(initdb).resolve().parent, scratch / "data", free_port())
    (scratch / "password").write_text(PASSWORD)
    server.run(
        "initdb",
        "--pgdata",
        str(server.data),
        "--auth",
        "scram-sha-256",
        "--username",
        "prefect",
        "--pwfile",
        str(scratch / "password"),
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(scratch)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment variables with which clients find an S3-compatible store."""
    binaries = Path(os.environ.get("SWIFT_BIN", "none"))
    if not (binaries / "swift-proxy-server").exists():
        pytest.skip(
            "SWIFT_BIN is not a folder with swift-proxy-server; `make test-services` sets it"
        )
    root = tmp_path_factory.mktemp("swift")
    ports = {name: free_port() for name in ("account", "container", "object", "proxy")}
    for name, text in swift_files(root, ports).items():
        (root / name).write_text(text)
    (root / "disks" / "d").mkdir(parents=True)
    for name in ("account", "container", "object"):
        builder = [binaries / "swift-ring-builder", root / f"{name}.builder"]
        for step in (
            ["create", "4", "1", "0"],
            ["add", f"r1z1-127.0.0.1:{ports[name]}/d", "1"],
            ["rebalance"],
        ):
            subprocess.run([*builder, *step], check=True, stdout=subprocess.DEVNULL)
    with running(
        root, [[binaries / f"swift-{name}-server", root / f"{name}.conf"] for name in ports]
    ):
        until(lambda: all(answers(port) for port in ports.values()), root)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['proxy']}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def swift_files(root: Path, ports: dict[str, int]) -> dict[str, str]:
    """Return Swift's configuration files by name: one process of each kind, one disk, one copy."""
    user = os.environ.get("USER", "root")
    common = (
        f"swift_dir = {root}\nbind_ip = 127.0.0.1\nworkers = 0\nuser = {user}\nlog_statsd_host =\n"
    )
    storage = f"devices = {root}/disks\nmount_check = false\n"
    files = {
        "swift.conf": "[swift-hash]\nswift_hash_path_suffix = test\n"
        "[storage-policy:0]\nname = gold\ndefault = true\n"
    }
    for name in ("account", "container", "object"):
        files[f"{name}.conf"] = (
            f"[DEFAULT]\n{common}{storage}bind_port = {ports[name]}\n"
            f"[pipeline:main]\npipeline = {name}-server\n"
            f"[app:{name}-server]\nuse = egg:swift#{name}\n"
        )
    account, user = KEY.split(":")
    filters = ("catch_errors", "cache", "listing_formats", "bulk", "s3api", "tempauth", "slo")
    options = {
        "s3api": "location = us-east-1\n",
        "tempauth": f"user_{account}_{user} = {SECRET} .admin\n",
    }
    files["proxy.conf"] = (
        f"[DEFAULT]\n{common}bind_port = {ports['proxy']}\n"
        f"[pipeline:main]\npipeline = {' '.join(filters)} proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
    )
    for name in filters:
        egg = "memcache" if name == "cache" else name
        files["proxy.conf"] += f"[filter:{name}]\nuse = egg:swift#{egg}\n{options.get(name, '')}"
    return files


@contextmanager
def running(root: Path, commands: list[list[Path]]) -> Iterator[None]:
    """Run commands until the end of the block."""
    with (root / "log").open("ab") as log:
        children = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def until(condition: Callable[[], bool], root: Path, timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, (root / "log").read_text()[-3000:]
        time.sleep(0.1)


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
