"""Training on two nodes: two agents of torchrun on this machine, which share a folder.

The train stage starts one agent, and `clickmill stage join` starts the other.
"""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from tests.factories.features import training_params, write_features
from tests.factories.support import still_running, wait_for
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
