"""Ingest on a real Dask cluster of two worker processes: the bytes of a local run, whatever happens to a worker."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.progress import Progress
from features.collect.stage import collect
from features.encode.stage import build_features
from features.ingest.stage import PARQUET, PARTS, ingest
from features.sample.generate import write_sample
from tests.conftest import Project, free_port, set_param
from tests.factories.deployments import START_S, Api, start_service, until
from tests.factories.support import CRITEO, ROOT, make_params

ROWS = {"day_0": 80_000, "day_1": 4_000, "day_2": 6_000, "day_3": 5_000}
LARGEST = "day_0"
READS = re.compile(r"tcp://\S+ reads (\S+)")
PARAMS: dict[str, Any] = {"data__source": "days", "ingest__max_bad_fraction": 0.01}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample log as day files, one with malformed rows, ingested here."""
    root = tmp_path_factory.mktemp("local")
    with Progress("sample", sum(ROWS.values()), None) as progress:
        write_sample(root / "sample.tsv", sum(ROWS.values()), len(ROWS), 1, CRITEO, progress)
    lines = iter((root / "sample.tsv").read_bytes().splitlines(keepends=True))
    (root / "days").mkdir()
    for name, num_rows in ROWS.items():
        (root / "days" / name).write_bytes(b"".join(next(lines) for _ in range(num_rows)))
    with (root / "days" / "day_2").open("ab") as file:
        file.write(b"rubbish\n" * 3)
    for stage in (collect, ingest, build_features):
        stage(make_params(**PARAMS), root)
    return root


class Cluster:
    """`dask scheduler` and two `dask worker`, without nannies: a worker that is killed stays away until revive."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = (
            folder,
            environment | {"PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1"},
        )
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.scheduler = self.start(
            "scheduler",
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            self.address.rpartition(":")[2],
        )
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, command: str, name: str, *options: str) -> "subprocess.Popen[bytes]":
        words = [
            sys.executable,
            "-m",
            f"distributed.cli.dask_{command}",
            *options,
            "--no-dashboard",
        ]
        with (self.folder / name).open("wb") as log:
            return subprocess.Popen(
                words, env=self.environment, cwd=self.folder, stdout=log, stderr=log
            )

    def revive(self) -> None:
        """See that both workers are there, and forget what they read."""
        for name in ("worker_0", "worker_1"):
            if name not in self.workers or self.workers[name].poll() is not None:
                self.workers[name] = self.start(
                    "worker", name, self.address, "--no-nanny", "--nthreads", "1"
                )
        for name in self.workers:
            until(
                lambda name=name: "Registered to" in (self.folder / name).read_text(),
                START_S,
                self.folder / name,
            )
        self.forgotten = [*self._all_reads()]

    def reads(self) -> list[tuple[str, str]]:
        """(worker, log) for each time that a worker began to read a log."""
        return [*(Counter(self._all_reads()) - Counter(self.forgotten)).elements()]

    def _all_reads(self) -> Iterator[tuple[str, str]]:
        return (
            (name, log)
            for name in self.workers
            for log in READS.findall((self.folder / name).read_text())
        )

    def stop(self) -> None:
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), environment)
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    started.revive()
    return started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[str]:
    """The URL of a Prefect server."""
    port, folder = str(free_port()), tmp_path_factory.mktemp("server")
    service = start_service(
        Project(folder, environment | {"PREFECT_SERVER_API_PORT": port}),
        folder / "log",
        "prefect",
        "server",
        "start",
    )
    try:
        until(Api(f"http://127.0.0.1:{port}/api").ready, START_S, folder / "log")
        yield f"http://127.0.0.1:{port}/api"
    finally:
        service.terminate()
        service.wait(10)


@pytest.fixture
def asking(
    tmp_path: Path, local: Path, cluster: Cluster, server: str, environment: dict[str, str]
) -> Project:
    """A folder with the same logs, collected, and a params.yaml that names the cluster."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "days").symlink_to(local / "days")
    write_params(root, runner="dask", dask_address=cluster.address)
    collect(make_params(**PARAMS), root)
    return Project(root, environment | {"PREFECT_API_URL": server})


def write_params(root: Path, **changes: object) -> None:
    """params.yaml with other values of `ingest`, beside the code under test."""
    for room in ("features", "training", "flows"):
        if not (root / room).exists():
            (root / room).symlink_to(ROOT / room)
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    set_param(root, "data", "source", "days")
    for name, value in changes.items():
        set_param(root, "ingest", name, value)


def content(root: Path, folder: Path = PARQUET) -> dict[str, bytes]:
    files = (path for path in (root / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_two_workers_make_the_same_bytes(asking: Project, cluster: Cluster, local: Path) -> None:
    output = asking.run("clickmill", "stage", "ingest")
    assert "2 workers" in output
    assert "100 %  95,003 rows" in output
    assert content(asking.root) == content(local)
    assert Counter(log for _, log in cluster.reads()) == dict.fromkeys(ROWS, 1)
    assert {worker for worker, _ in cluster.reads()} == set(cluster.workers)
    build_features(make_params(**PARAMS), asking.root)
    assert content(asking.root, Path("artifacts/features")) == content(
        local, Path("artifacts/features")
    )
    assert not (asking.root / PARTS).exists()


def test_a_killed_worker_costs_its_shard_a_retry(
    asking: Project, cluster: Cluster, local: Path
) -> None:
    child = asking.start("clickmill", "stage", "ingest")
    deadline_s = time.monotonic() + START_S
    while not (reading := [worker for worker, log in cluster.reads() if log == LARGEST]) or not [
        *(asking.root / PARTS).glob("*.tmp")
    ]:
        assert time.monotonic() < deadline_s, "killed too late: the shard was finished"
        time.sleep(0.01)  # it says so before it begins to write
    victim = reading[0]
    os.kill(cluster.workers[victim].pid, signal.SIGKILL)
    cluster.workers[victim].wait()
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0, output
    assert content(asking.root) == content(local)
    assert Counter(log for _, log in cluster.reads()) == {**dict.fromkeys(ROWS, 1), LARGEST: 2}
    assert [worker for worker, log in cluster.reads() if log == LARGEST] == sorted(cluster.workers)
    assert not (asking.root / PARTS).exists()


def test_what_is_no_log_is_one_line(asking: Project, cluster: Cluster, local: Path) -> None:
    """And is not tried again: a log does not mend itself."""
    broken = asking.root / "days" / "day_1"
    (asking.root / "days").unlink()
    shutil.copytree(local / "days", asking.root / "days")
    broken.write_bytes(b"no\tlog\n" * 100)
    collect(make_params(**PARAMS), asking.root)
    last_line = asking.run("clickmill", "stage", "ingest", code=os.EX_DATAERR).splitlines()[-1]
    assert last_line.startswith(
        f"clickmill: error: {asking.root}/artifacts/raw/day_1: none of its first 100 lines can be read"
    )
    assert [log for _, log in cluster.reads()].count("day_1") == 1


def test_machines_that_share_a_store_alone(
    asking: Project, cluster: Cluster, local: Path, tmp_path: Path
) -> None:
    """As on S3: logs go there, shards come back, and nothing is left of either."""
    store = tmp_path / "store"
    write_params(
        asking.root, runner="dask", dask_address=cluster.address, shared_storage=store.as_uri()
    )
    assert f"day_0 to {store.as_uri()}" in asking.run("clickmill", "stage", "ingest")
    assert content(asking.root) == content(local)
    assert list(store.iterdir()) == []


def test_inside_a_flow(project: Project, cluster: Cluster, local: Path) -> None:
    """As `clickmill run` has it: flow -> dvc -> clickmill stage ingest -> flow -> workers; there is no server but the temporary one."""
    project.set_param("data", "source", str(local / "days"))
    project.set_param("ingest", "runner", "dask")
    project.set_param("ingest", "dask_address", cluster.address)
    collect(make_params(data__source=str(local / "days")), project.root)
    imports = "from pathlib import Path; from prefect import flow; from flows.server import *; from flows.train_dlrm import run_stage"
    project.run(
        "python",
        "-c",
        f"{imports}\nensure_server()\n@flow\ndef outer(): run_stage('ingest', Path.cwd())\nouter()",
    )
    assert content(project.root) == content(local)
    assert Counter(log for _, log in cluster.reads()) == dict.fromkeys(ROWS, 1)
    assert not [
        child
        for worker in cluster.workers.values()
        for child in psutil.Process(worker.pid).children()
    ]  # such as a server
    project.set_param("ingest", "runner", "local")  # who reads the files makes no difference
    assert "didn't change, skipping" in project.run("dvc", "repro", "--single-item", "ingest")


RUN = "from flows.cli import app; app(['ingest'], standalone_mode=False)"


def test_a_local_run_knows_no_dask(
    tmp_path: Path, local: Path, environment: dict[str, str]
) -> None:
    root = Project(tmp_path, environment)
    write_params(root.root)
    (tmp_path / "artifacts").mkdir()
    shutil.copytree(local / "artifacts/raw", tmp_path / "artifacts/raw")
    unwanted = {"dask", "distributed", "prefect", "prefect_dask"}
    assert (
        root.run(
            "python", "-c", f"{RUN}; import sys; print({unwanted} & set(sys.modules))"
        ).splitlines()[-1]
        == "set()"
    )
    assert content(tmp_path) == content(local)


@pytest.mark.parametrize("package", ["distributed", "prefect_dask"])
def test_a_missing_package_is_one_line_that_names_it(
    tmp_path: Path, environment: dict[str, str], package: str
) -> None:
    write_params(tmp_path, runner="dask", dask_address="tcp://127.0.0.1:9")
    without = f"import sys; sys.modules['{package}'] = None; {RUN}"
    last_line = (
        Project(tmp_path, environment)
        .run("python", "-c", without, code=os.EX_CONFIG)
        .splitlines()[-1]
    )
    assert last_line.startswith(
        f"clickmill: error: ingest.runner is dask, but {package} is not installed: pip install 'clickmill[dask]'"
    )
