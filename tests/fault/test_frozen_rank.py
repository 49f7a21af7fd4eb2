"""If a rank hangs, the other ranks time out and the run fails."""

import signal
from pathlib import Path
from threading import Thread

import psutil
import pytest

from tests.factories.features import training_params, write_features
from tests.factories.support import ROOT, children_where, still_running, wait_for
from training.launch import launcher
from training.launch.launcher import RanksFailed
from training.stage import train

pytestmark = pytest.mark.slow


def test_a_frozen_rank_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank reports a timeout. The error names the frozen rank, which is then killed."""
    write_features(tmp_path, {"train": [200, 121], "valid": [101], "test": [50]})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(launcher, "WORKER_MODULE", "tests.fault.impatient_worker")
    frozen: list[psutil.Process] = []
    freezer = Thread(daemon=True, target=freeze_second_rank, args=(tmp_path, frozen))
    freezer.start()
    message = (
        # gloo has two messages: "Timed out waiting" and "Application timeout caused pair closure"
        r"(?s)^training on 2 ranks failed: rank 0 on .*"
        r"([Tt]imed out|Application timeout caused pair closure)"
        r".*\nno report of rank 1: hung, or gone"
    )
    params = training_params(devices=2, parallel="data", epochs=100_000, checkpoint_minutes=1e-9)
    with pytest.raises(RanksFailed, match=message):
        train(params, tmp_path)
    freezer.join()
    assert len(frozen) == 1
    assert not still_running(frozen, within_s=10)


def freeze_second_rank(root: Path, frozen: list[psutil.Process]) -> None:
    """Stop rank 1 with SIGSTOP when there is a checkpoint, and append its process to `frozen`."""
    wait_for(lambda: list(root.glob("runs/checkpoints/*/last.pt")))
    for process in children_where(is_second_rank, psutil.Process(), recursive=True):
        process.send_signal(signal.SIGSTOP)
        frozen.append(process)


def is_second_rank(process: psutil.Process) -> bool:
    is_agent = launcher.AGENT_MODULE in process.cmdline()
    return not is_agent and process.environ().get("RANK") == "1"
