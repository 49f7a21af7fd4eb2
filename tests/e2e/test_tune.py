"""`clickmill tune`: killed at any moment, on a Dask cluster and under Prefect, it is one study."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from common.config.params import load_params
from tests.conftest import Project, set_param
from tests.factories.dask_cluster import Cluster
from tests.factories.studies import tune_values
from training.tune.study_files import CONFIRMATIONS, STUDIES, TRIALS, read_summary

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    "trials": 6,
    "window": 2,
    "set": {"train.epochs": 1, "train.validations": 4},
    "confirm": {"best": 1, "seeds": 2},
    "space": {
        "model.embedding_dim": {"choice": [2, 4]},
        "model.top_mlp": {"choice": [[8], [16]]},
        "train.dense_optimizer.lr": {"low": 0.001, "high": 0.01, "log": True},
        "features.min_count": {"choice": [2, 3]},
    },
}


def write_settings(root: Path, **changes: Any) -> None:
    with (root / "tune.yaml").open("w") as file:
        YAML(typ="safe").dump(tune_values(**SETTINGS | changes), file)


@pytest.fixture(scope="module")
def project(repository: Path, environment: dict[str, str], tmp_path_factory: Any) -> Project:
    """A checkout whose features are up to date, and whose study was run with one worker."""
    root = tmp_path_factory.mktemp("tune") / "project"
    shutil.copytree(repository, root, symlinks=True)
    set_param(root, "model", "bottom_mlp", [8])
    set_param(root, "model", "top_mlp", [16])
    set_param(root, "train", "logger", "none")
    project = Project(root, environment)
    write_settings(root, parallel=1)
    project.run("clickmill", "tune", timeout_s=600)
    return project


def journals(root: Path) -> bytes:
    """Return the bytes of the journals of the only study."""
    (folder,) = (path for path in (root / STUDIES).iterdir() if path.is_dir())
    return (folder / TRIALS).read_bytes() + (folder / CONFIRMATIONS).read_bytes()


@pytest.fixture
def expected(project: Project) -> Iterator[bytes]:
    """The bytes of the study's journals, which is moved aside meanwhile."""
    aside = project.root / "runs" / "first_study"
    if not aside.exists():
        (project.root / STUDIES).rename(aside)
    (first,) = (path for path in aside.iterdir() if path.is_dir())
    yield (first / TRIALS).read_bytes() + (first / CONFIRMATIONS).read_bytes()
    shutil.rmtree(project.root / STUDIES, ignore_errors=True)


def wait_for_trials(project: Project, count: int, process: "subprocess.Popen[str]") -> None:
    """Wait until the journal has a number of lines."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        found = list((project.root / STUDIES).glob(f"*/{TRIALS}"))
        if found and found[0].read_bytes().count(b"\n") >= count:
            return
        if process.poll() is not None:
            output, _ = process.communicate()
            raise AssertionError(f"the search ended too early: {output}")
        time.sleep(0.05)
    raise AssertionError("no trial was finished in time")


def test_kills_of_the_coordinator_and_of_a_worker_change_nothing(
    project: Project, expected: bytes
) -> None:
    write_settings(project.root, parallel=2)
    process = project.start("clickmill", "tune")
    wait_for_trials(project, 2, process)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive, "the workers end with the coordinator"
    (journal,) = (project.root / STUDIES).glob(f"*/{TRIALS}")
    with journal.open("ab") as file:
        file.write(b'{"number": 4, "values": {"model.em')
    process = project.start("clickmill", "tune")
    wait_for_trials(project, 3, process)
    for worker in psutil.Process(process.pid).children()[:1]:
        worker.kill()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert journals(project.root) == expected


def test_ctrl_c_ends_the_search_and_leaves_its_trials(project: Project, expected: bytes) -> None:
    process = project.start("clickmill", "tune")
    wait_for_trials(project, 1, process)
    workers = psutil.Process(process.pid).children()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    (journal,) = (project.root / STUDIES).glob(f"*/{TRIALS}")
    assert journal.read_bytes().count(b"\n") >= 1


def test_a_dask_cluster_runs_the_same_study(
    project: Project, expected: bytes, tmp_path: Path, environment: dict[str, str]
) -> None:
    cluster = Cluster(tmp_path, environment)
    try:
        cluster.revive()
        params = project.root / "params.yaml"
        text = params.read_text()
        project.set_param("dask", "address", cluster.address)
        process = project.start("clickmill", "tune", "--runner", "dask")
        wait_for_trials(project, 1, process)
        cluster.workers["worker_1"].kill()
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
        params.write_text(text)
    finally:
        cluster.stop()
    assert journals(project.root) == expected


def test_the_adopted_trial_is_what_the_study_has_seen(project: Project) -> None:
    """`clickmill run` after `clickmill adopt` has the validation logloss of the trial."""
    root = project.root
    aside = root / "runs" / "first_study"
    if aside.exists():
        shutil.rmtree(root / STUDIES, ignore_errors=True)
        aside.rename(root / STUDIES)
    (folder,) = (path for path in (root / STUDIES).iterdir() if path.is_dir())
    best = read_summary(folder)["front"][-1]
    text = (root / "params.yaml").read_text()
    shown = project.run("clickmill", "adopt", str(best["trial"]))
    assert "+++ params.yaml" in shown
    params = load_params(root / "params.yaml")
    assert params.model.embedding_dim == best["values"]["model.embedding_dim"]
    assert params.train.validations == 4
    project.run("clickmill", "run")
    history = (root / "artifacts/model/history.csv").read_text().splitlines()
    losses = [line.split(",")[2] for line in history if ",valid," in line]
    assert min(losses) == f"{best['logloss']:.6f}"
    (root / "params.yaml").write_text(text)
