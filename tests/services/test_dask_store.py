"""A Dask cluster whose machines share only an S3-compatible store that checks credentials."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import botocore.session
import pytest

from common.layout import FEATURES
from common.progress import Progress
from features.collect.stage import collect
from features.dataset.stage import build_features
from features.ingest.stage import ingest
from features.sample.generate import write_sample
from tests.conftest import Project, set_param
from tests.factories.dask_cluster import Cluster, content, write_params
from tests.factories.support import CRITEO, ROOT, make_params

pytestmark = pytest.mark.services
BUCKET, NUM_DAYS, DAY_ROWS = "features", 4, 3000
PARAMS = {"data__source": "days", "features__fit_days": 2}


@pytest.fixture
def cluster(
    tmp_path: Path, environment: dict[str, str], store: dict[str, str]
) -> Iterator[Cluster]:
    """Two workers with the credentials of the store, which has an empty bucket."""
    command = [sys.executable, str(ROOT / "docker" / "make_bucket.py"), BUCKET]
    subprocess.run(command, check=True, env=os.environ | store, stdout=subprocess.DEVNULL)
    (tmp_path / "cluster").mkdir()
    cluster = Cluster(tmp_path / "cluster", environment | store)
    cluster.revive()
    yield cluster
    cluster.stop()


@pytest.fixture
def client(
    tmp_path: Path, cluster: Cluster, environment: dict[str, str], store: dict[str, str]
) -> Project:
    """A folder with a log of several files after collect; its params.yaml names the cluster."""
    root = tmp_path / "root"
    (root / "days").mkdir(parents=True)
    with Progress("sample", None, None) as progress:
        write_sample(tmp_path / "log", NUM_DAYS * DAY_ROWS, NUM_DAYS, 1, CRITEO, progress)
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    for day in range(NUM_DAYS):
        of_day = lines[day * DAY_ROWS : (day + 1) * DAY_ROWS]
        (root / "days" / f"day_{day}").write_bytes(b"".join(of_day))
    write_params(root, address=cluster.address, shared_storage=f"s3://{BUCKET}/clickmill")
    set_param(root, "features", "fit_days", 2)
    collect(make_params(**PARAMS), root)
    return Project(root, environment | store)


def test_all_phases_go_through_the_store(
    client: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: dict[str, str]
) -> None:
    for stage in ("ingest", "features"):
        client.run("clickmill", "stage", stage)
    local = tmp_path / "local"
    local.mkdir()
    (local / "days").symlink_to(client.root / "days")
    for run_stage in (collect, ingest, build_features):
        run_stage(make_params(**PARAMS), local)
    assert content(client.root) == content(local)
    assert content(client.root, FEATURES) == content(local, FEATURES)

    for name, value in store.items():
        monkeypatch.setenv(name, value)
    listing = botocore.session.get_session().create_client("s3").list_objects_v2(Bucket=BUCKET)
    names = [one["Key"] for one in listing["Contents"]]
    assert len(names) == NUM_DAYS
    assert all(name.startswith("clickmill/shards/") for name in names)  # for later runs


def test_a_wrong_key_is_named_in_one_line(client: Project) -> None:
    wrong = Project(client.root, client.environment | {"AWS_SECRET_ACCESS_KEY": "guessed"})
    output = wrong.run("clickmill", "stage", "ingest", code=1)
    assert "Traceback" not in output
    assert "dask.shared_storage is s3://features/clickmill" in output.splitlines()[-1]
