"""Ingest and features on a real Dask cluster of two worker processes.

The bytes equal those of a local run, also when a worker is killed.
"""

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.layout import FEATURES, PARQUET
from common.progress import Progress
from features.collect.stage import collect
from features.dataset.stage import build_features
from features.ingest.stage import SHARDS_DIR, ingest
from features.sample.generate import write_sample
from flows.dask_features import EXCHANGE
from tests.conftest import Project, free_port
from tests.factories.dask_cluster import Cluster, content, write_params
from tests.factories.deployments import START_S, Api, start_service, until
from tests.factories.support import CRITEO, make_params

pytestmark = pytest.mark.slow

ROWS = {"day_0": 80_000, "day_1": 4_000, "day_2": 6_000, "day_3": 5_000}
LARGEST = "day_0"
PARAMS: dict[str, Any] = {"data__source": "days", "ingest__max_bad_fraction": 0.01}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample log as day files, one with malformed rows, ingested in this process."""
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


@pytest.fixture(scope="module")
def started_cluster(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Iterator[Cluster]:
    """A cluster for all tests of this module."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), environment)
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(started_cluster: Cluster) -> Cluster:
    """The cluster with both workers running."""
    started_cluster.revive()
    return started_cluster


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
def client(
    tmp_path: Path, local: Path, cluster: Cluster, server: str, environment: dict[str, str]
) -> Project:
    """A folder with the same logs after collect; its params.yaml names the cluster."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "days").symlink_to(local / "days")
    write_params(root, address=cluster.address)
    collect(make_params(**PARAMS), root)
    return Project(root, environment | {"PREFECT_API_URL": server})


def test_two_workers_make_the_same_bytes(client: Project, cluster: Cluster, local: Path) -> None:
    output = client.run("clickmill", "stage", "ingest")
    assert "2 workers" in output
    assert "100 %  95,003 rows" in output
    assert content(client.root) == content(local)
    assert Counter(log for _, log in cluster.reads()) == dict.fromkeys(ROWS, 1)
    assert {worker for worker, _ in cluster.reads()} == set(cluster.workers)
    assert not (client.root / SHARDS_DIR).exists()

    output = client.run("clickmill", "stage", "features")
    assert content(client.root, FEATURES) == content(local, FEATURES)
    assert "100 %  95,000 rows" in output
    assert {worker for worker, _ in cluster.jobs("count")} == set(cluster.workers)
    assert len(cluster.jobs("merge C")) >= 26
    assert not (client.root / EXCHANGE).exists()


@pytest.mark.parametrize("phase", ["count", "merge", "encode"])
def test_the_jobs_of_a_killed_worker_are_done_again(
    client: Project, cluster: Cluster, local: Path, phase: str
) -> None:
    shutil.copytree(local / PARQUET, client.root / PARQUET)
    child = client.start("clickmill", "stage", "features")
    deadline_s = time.monotonic() + START_S
    while not cluster.jobs(phase):
        assert time.monotonic() < deadline_s, f"no job of the phase {phase} was begun"
        time.sleep(0.002)
    victim = cluster.workers[cluster.jobs(phase)[-1][0]]
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 0, output
    assert content(client.root, FEATURES) == content(local, FEATURES)
    assert not (client.root / EXCHANGE).exists()
    num_jobs = len({title for _, title in cluster.jobs()})
    assert len(cluster.jobs()) <= num_jobs + 8  # hardly any job was done twice


def test_the_shard_of_a_killed_worker_is_retried(
    client: Project, cluster: Cluster, local: Path
) -> None:
    child = client.start("clickmill", "stage", "ingest")

    def readers_of_largest() -> list[str]:
        return [worker for worker, log in cluster.reads() if log == LARGEST]

    # The worker logs that it reads a file before it begins to write the shard.
    deadline_s = time.monotonic() + START_S
    while not (readers_of_largest() and list((client.root / SHARDS_DIR).glob("*.tmp"))):
        assert time.monotonic() < deadline_s, "no moment found at which the shard was written"
        time.sleep(0.01)
    victim = cluster.workers[readers_of_largest()[0]]
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0, output
    assert content(client.root) == content(local)
    assert Counter(log for _, log in cluster.reads()) == {**dict.fromkeys(ROWS, 1), LARGEST: 2}
    assert sorted(readers_of_largest()) == sorted(cluster.workers)
    assert not (client.root / SHARDS_DIR).exists()


def test_a_file_that_is_no_log_is_reported_in_one_line(
    client: Project, cluster: Cluster, local: Path
) -> None:
    """The file is not retried, because a retry would read the same bytes."""
    broken = client.root / "days" / "day_1"
    (client.root / "days").unlink()
    shutil.copytree(local / "days", client.root / "days")
    broken.write_bytes(b"no\tlog\n" * 100)
    collect(make_params(**PARAMS), client.root)
    last_line = client.run("clickmill", "stage", "ingest", code=os.EX_DATAERR).splitlines()[-1]
    path = client.root / "artifacts/raw/day_1"
    assert last_line.startswith(
        f"clickmill: error: {path}: none of its first 100 lines can be read"
    )
    assert [log for _, log in cluster.reads()].count("day_1") == 1


def test_machines_can_share_only_an_object_store(
    client: Project, cluster: Cluster, local: Path, tmp_path: Path
) -> None:
    """Logs are uploaded and removed, shards are downloaded and stay for the features stage."""
    store = tmp_path / "store"
    write_params(client.root, address=cluster.address, shared_storage=store.as_uri())
    assert f"day_0 to {store.as_uri()}" in client.run("clickmill", "stage", "ingest")
    assert content(client.root) == content(local)
    client.run("clickmill", "stage", "features")
    assert content(client.root, FEATURES) == content(local, FEATURES)
    stay = [path.parent.name for path in store.rglob("*") if path.is_file()]
    assert stay == ["shards"] * len(ROWS)


INGEST_IN_A_FLOW = """
from pathlib import Path
from prefect import flow
from flows.prefect_server import ensure_server
from flows.train_dlrm import run_stage

@flow
def outer():
    run_stage("ingest", Path.cwd())

ensure_server()
outer()
"""


def test_ingest_on_dask_inside_a_flow(project: Project, cluster: Cluster, local: Path) -> None:
    """The processes are those of `clickmill run`: flow, dvc, `clickmill stage ingest`, workers.

    The only Prefect server is the temporary server of the outer flow.
    """
    project.set_param("data", "source", str(local / "days"))
    project.set_param("dask", "address", cluster.address)
    collect(make_params(data__source=str(local / "days")), project.root)
    project.run("python", "-c", INGEST_IN_A_FLOW)
    assert content(project.root) == content(local)
    assert Counter(log for _, log in cluster.reads()) == dict.fromkeys(ROWS, 1)
    for worker in cluster.workers.values():
        assert not psutil.Process(worker.pid).children()  # no worker started its own server
    project.set_param("dask", "address", None)  # the same bytes, so the stage stays up to date
    assert "didn't change, skipping" in project.run("dvc", "repro", "--single-item", "ingest")


INGEST = "from flows.cli.main import app; app(['stage', 'ingest'], standalone_mode=False)"
DASK_PACKAGES = {"dask", "distributed", "prefect", "prefect_dask"}


def test_a_local_run_imports_no_dask(
    tmp_path: Path, local: Path, environment: dict[str, str]
) -> None:
    write_params(tmp_path)
    (tmp_path / "artifacts").mkdir()
    shutil.copytree(local / "artifacts/raw", tmp_path / "artifacts/raw")
    code = f"{INGEST}; import sys; print({DASK_PACKAGES} & set(sys.modules))"
    output = Project(tmp_path, environment).run("python", "-c", code)
    assert output.splitlines()[-1] == "set()"
    assert content(tmp_path) == content(local)


@pytest.mark.parametrize("package", ["distributed", "prefect_dask"])
def test_a_missing_package_is_reported_in_one_line(
    tmp_path: Path, environment: dict[str, str], package: str
) -> None:
    write_params(tmp_path, address="tcp://127.0.0.1:9")
    code = f"import sys; sys.modules['{package}'] = None; {INGEST}"
    project = Project(tmp_path, environment)
    last_line = project.run("python", "-c", code, code=os.EX_CONFIG).splitlines()[-1]
    assert last_line.startswith(
        f"clickmill: error: dask.address is given, but {package} is not installed: "
        "pip install 'clickmill[dask]'"
    )
