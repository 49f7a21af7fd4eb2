"""Real services on this machine's loopback: PostgreSQL from Debian's package, and an S3-compatible server that checks signatures, OpenStack
Swift, from an environment of its own (`make test-services` makes both ready). What is not here skips its tests with a reason.
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

import pytest

from tests.conftest import free_port

PASSWORD, KEY, SECRET = "postgres-pass", "clickmill:tester", "swift-secret"
DEBIANS = "/usr/lib/postgresql"


@dataclass(frozen=True)
class Postgres:
    """A server that asks for a password; its data is thrown away with the folder."""

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
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.data.parent} -c fsync=off"
        self.control("start", "--options", options)

    def stop(self) -> None:
        self.control("stop", "--mode", "fast")

    def run(self, program: str, *arguments: str) -> None:
        """As the user postgres where we are root, whom it refuses."""
        who = (
            {"user": "postgres", "group": "postgres", "extra_groups": []}
            if os.geteuid() == 0
            else {}
        )
        subprocess.run(
            [self.binaries / program, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.data.parent,
            **who,
        )  # type: ignore[call-overload]

    @property
    def settings(self) -> dict[str, str]:
        """Of a Prefect server, as in docker/compose.yaml."""
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
    found = shutil.which("initdb") or next(
        map(str, sorted(Path(DEBIANS).glob("*/bin/initdb"), reverse=True)), None
    )
    if not found:
        pytest.skip(f"no initdb on PATH or below {DEBIANS}: install postgresql")
    scratch = Path(
        subprocess.check_output(["mktemp", "-d"], text=True).strip()
    )  # not below pytest's, which the user postgres may not enter
    if os.geteuid() == 0:
        shutil.chown(scratch, "postgres", "postgres")
    server = Postgres(Path(found).resolve().parent, scratch / "data", free_port())
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
    """Environment variables that lead to an S3-compatible store."""
    binaries = Path(os.environ.get("SWIFT_BIN", "none"))
    if not (binaries / "swift-proxy-server").exists():
        pytest.skip(
            "SWIFT_BIN names no folder with swift-proxy-server: `make test-services` sets it"
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
    """One process of each kind, one disk, one copy."""
    common = f"swift_dir = {root}\nbind_ip = 127.0.0.1\nworkers = 0\nuser = {os.environ.get('USER', 'root')}\nlog_statsd_host =\n"
    storage = f"devices = {root}/disks\nmount_check = false\n"
    files = {
        "swift.conf": "[swift-hash]\nswift_hash_path_suffix = test\n[storage-policy:0]\nname = gold\ndefault = true\n"
    }
    for name in ("account", "container", "object"):
        main = f"[pipeline:main]\npipeline = {name}-server\n[app:{name}-server]\nuse = egg:swift#{name}\n"
        files[f"{name}.conf"] = f"[DEFAULT]\n{common}{storage}bind_port = {ports[name]}\n{main}"
    account, user = KEY.split(":")
    filters = ("catch_errors", "cache", "listing_formats", "bulk", "s3api", "tempauth", "slo")
    options = {
        "s3api": "location = us-east-1\n",
        "tempauth": f"user_{account}_{user} = {SECRET} .admin\n",
    }
    files["proxy.conf"] = (
        f"[DEFAULT]\n{common}bind_port = {ports['proxy']}\n[pipeline:main]\npipeline = {' '.join(filters)} proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
    )
    for name in filters:
        egg = "memcache" if name == "cache" else name
        files["proxy.conf"] += f"[filter:{name}]\nuse = egg:swift#{egg}\n{options.get(name, '')}"
    return files


@contextmanager
def running(root: Path, commands: list[list[Path]]) -> Iterator[None]:
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
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0
