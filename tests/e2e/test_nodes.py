"""Training on two nodes: two agents of torchrun on this machine, which share a folder.

The train stage starts one agent, and `clickmill stage join` starts the other.
"""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from common.bundle_layout import MODEL
from common.config.loading import read_yaml
from common.config.params import Params
from tests.conftest import Project, free_port
from tests.factories.features import training_params, write_features
from tests.factories.support import ROOT, still_running, wait_for
from training.distributed.sharding.placement_report import PLACEMENT_FILE, read_placement
from training.launch.launcher import ENDPOINT_VARIABLE, ENVIRONMENT_OF_PARAM, RanksFailed
from training.stage import train

pytestmark = pytest.mark.slow

DAYS = {"train": [200, 121], "valid": [101], "test": [50]}


@pytest.fixture
def other_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[psutil.Popen]:
    """The second node, with one rank like the first. SIGTERM must end it and its rank."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("PET_NPROC_PER_NODE", "1")
    monkeypatch.setenv("PET_RDZV_ENDPOINT", endpoint)
    command = [str(Path(sys.executable).parent / "clickmill"), "join"]
    with (tmp_path / "join.log").open("w") as log:
        other = psutil.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    yield other
    family = other.children(recursive=True)
    other.terminate()
    assert other.wait(20) == 128 + signal.SIGTERM
    assert not still_running(family, within_s=5)


def test_nodes_train_the_members_of_an_ensemble_one_after_another(
    tmp_path: Path, other_node: psutil.Popen
) -> None:
    """The other node joins the training of each member."""
    write_features(tmp_path, DAYS)
    train(training_params(parallel="data", ensemble_size=2, batch_size=63), tmp_path)
    found = [
        load_file(tmp_path / MODEL / name)
        for name in ("weights.safetensors", "weights_2.safetensors")
    ]
    assert not np.array_equal(found[0]["top.0.weight"], found[1]["top.0.weight"])
    assert (tmp_path / "join.log").read_text().count("1 of 2 ranks on cpu") == 2
    assert not list((tmp_path / "runs/checkpoints").iterdir())


def test_nodes_train_together_and_resume_after_a_rank_is_killed(
    tmp_path: Path, other_node: psutil.Popen, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error names the killed rank of the other node.

    The next attempt resumes from the checkpoint and ends with the weights of a run on one device.
    """
    pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")
    write_features(tmp_path, DAYS)
    changes = {
        "batch_size": 63,
        "epochs": 4,
        "checkpoint_minutes": 1e-9,
        "dense_optimizer": {"name": "sgd", "lr": 0.1},
    }
    params = training_params(
        parallel="model", embedding_optimizer={"name": "sgd", "lr": 0.1}, **changes
    )
    one = params.model_copy(
        update={"train": params.train.model_copy(update={"devices": 1, "nodes": 1})}
    )
    killer = Thread(daemon=True, target=kill_a_rank_of, args=(other_node, tmp_path))
    killer.start()
    with pytest.raises(
        RanksFailed, match=r"^training on 2 ranks failed: rank 1 on \S+: killed by SIGKILL"
    ):
        train(params, tmp_path)
    killer.join()
    assert not (tmp_path / "artifacts/model").exists()
    assert not (tmp_path / "runs/nodes").exists()
    capfd.readouterr()
    train(params, tmp_path)
    out = capfd.readouterr().out
    assert "resumes at step" in out
    assert "minutes at 127.0.0.1:" in out
    assert "1 of 2 ranks on cpu" in out
    assert "table_wise" in out
    assert out.count("100 %") == 1
    two = load_file(tmp_path / "artifacts/model/weights.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        for name in (*ENVIRONMENT_OF_PARAM.values(), ENDPOINT_VARIABLE):
            patch.delenv(name)
        train(one, tmp_path)
    for name, weights in load_file(tmp_path / "artifacts/model/weights.safetensors").items():
        np.testing.assert_allclose(two[name], weights, rtol=1e-5, atol=1e-5, err_msg=name)
    joined = (tmp_path / "join.log").read_text()
    assert "join      training on 2 ranks failed: rank 1 on" in joined
    assert "join      done; waits for the next" in joined


def kill_a_rank_of(node: psutil.Process, root: Path) -> None:
    """Kill the rank of a node as soon as there is a checkpoint."""
    wait_for(lambda: list(root.glob("runs/checkpoints/*/last.pt")))
    (agent,) = node.children()
    for rank in agent.children():
        rank.kill()


FIRST_NODE = """
import sys
from pathlib import Path
from common.config.params import Params
from common.logs import configure_logging
from training.stage import train
configure_logging()
train(Params.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""
RUN: dict[str, Any] = {
    "nodes": 2,
    "parallel": "data",
    "batch_size": 16,
    "epochs": 3,
    "validations": 12,
    "checkpoint_minutes": 1e-9,
    "weight_averaging": True,
    "reset_embeddings_each_epoch": True,
    "logger": "none",
}


@contextmanager
def node(root: Path, log: str, *command: str) -> Iterator[psutil.Popen]:
    """Run a command as a node, which is killed with all its processes in the end."""
    with (root / log).open("w") as output:
        process = psutil.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        kill_with_children(process)


def kill_with_children(process: psutil.Process) -> None:
    """Kill a node as if its machine lost its power."""
    if process.is_running():
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # it ends when its parent is killed
                each.kill()
    process.wait()


@contextmanager
def both_nodes(params: Params, root: Path) -> Iterator[tuple[psutil.Popen, psutil.Popen]]:
    """Run both nodes: the train stage, and `clickmill stage join`."""
    joining = ["-c", "from pathlib import Path; from training.launch.launcher import join; join"]
    joining[1] += f"(Path({str(root)!r}))"
    with (
        node(root, "other.log", *joining) as other,
        node(
            root, "first.log", "-c", FIRST_NODE, params.model_dump_json(by_alias=True), str(root)
        ) as first,
    ):
        yield first, other


def model_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / MODEL).glob("*.*"))}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The model of two nodes that nothing disturbs."""
    root = tmp_path_factory.mktemp("unbroken")
    write_features(root, DAYS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENDPOINT_VARIABLE, f"127.0.0.1:{free_port()}")
        with both_nodes(training_params(**RUN), root) as (first, _):
            assert first.wait(240) == 0, (root / "first.log").read_text()
    return model_of(root)


@pytest.mark.parametrize("killed", ["first", "other"])
def test_both_nodes_resume_within_an_epoch_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, bytes], killed: str
) -> None:
    monkeypatch.setenv(ENDPOINT_VARIABLE, f"127.0.0.1:{free_port()}")
    params = training_params(**RUN)
    root = tmp_path
    write_features(root, DAYS)
    with both_nodes(params, root) as (first, other):
        wait_for(lambda: list(root.glob("runs/checkpoints/*/last.pt")), 240)
        kill_with_children(first if killed == "first" else other)
    assert not (root / MODEL).exists()
    with both_nodes(params, root) as (first, _):
        assert first.wait(240) == 0, (root / "first.log").read_text()
    log = (root / "first.log").read_text()
    found = re.search(r"resumes at step (\d+) of (\d+)", log)
    assert found is not None, log
    assert int(found[1]) % (int(found[2]) // RUN["epochs"])  # it is within an epoch
    assert model_of(root) == unbroken


GUIDE = ROOT / "docs/guides/cpu-machines.md"


def block_of_guide(kind: str) -> str:
    """Return the first fenced block of a kind in the guide for CPU machines."""
    found = re.search(rf"^```{kind}\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_two_cpu_machines_train_as_their_guide_says(project: Project, tmp_path: Path) -> None:
    """The parameters and the commands are those of the guide; one device learns the same."""
    pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")
    (tmp_path / "train.yaml").write_text(block_of_guide("yaml"))
    of_guide = read_yaml(tmp_path / "train.yaml")["train"]
    assert of_guide == {"nodes": 2, "devices": 1, "parallel": "hybrid", "accelerator": "cpu"}
    for name, value in of_guide.items():
        project.set_param("train", name, value)
    join, run = (
        line.removeprefix("$ ").partition("#")[0].split()
        for line in block_of_guide("console").splitlines()
    )
    on_loopback = {ENDPOINT_VARIABLE: f"127.0.0.1:{free_port()}"}
    machines = Project(project.root, project.environment | on_loopback)
    other = machines.start(*join)
    try:
        output = machines.run(*run)
    finally:
        other.terminate()
        joined, _ = other.communicate(timeout=30)
    assert other.returncode == 128 + signal.SIGTERM
    assert "1 of 2 ranks on cpu" in output
    assert "1 of 2 ranks on cpu" in joined
    placement = read_placement(project.root / MODEL / PLACEMENT_FILE)
    assert {table.kind for table in placement} == {"row_wise", "replicated"}
    for table in placement:
        if table.kind == "row_wise":
            first, second = table.rank_bytes
            assert 0 < second <= first < 0.6 * (first + second)
    two = load_file(project.root / MODEL / "weights.safetensors")

    project.set_param("train", "nodes", 1)
    project.run("clickmill", "stage", "train")
    one = load_file(project.root / MODEL / "weights.safetensors")
    assert one.keys() == two.keys()
    for name, weights in one.items():
        np.testing.assert_allclose(two[name], weights, rtol=1e-4, atol=1e-4, err_msg=name)
