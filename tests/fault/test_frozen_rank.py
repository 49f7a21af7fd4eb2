"""A rank that hangs."""

import signal
from pathlib import Path
from threading import Thread

import psutil
import pytest

from tests.factories.features import make_params, write_features
from tests.factories.support import ROOT, still_running, wait_for
from training.distributed import launcher as nodes
from training.distributed.launcher import RanksFailed
from training.stage import train


def test_a_frozen_rank_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other gives up after a while, and says so; the one that cannot say anything is named, and killed."""
    write_features(tmp_path, {"train": [200, 121], "valid": [101], "test": [50]})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(nodes, "WORKER", "tests.fault.impatient_worker")
    frozen: list[psutil.Process] = []
    freezer = Thread(daemon=True, target=freeze_the_second, args=(tmp_path, frozen))
    freezer.start()
    with pytest.raises(
        RanksFailed,
        match=r"(?s)^training on 2 ranks failed: rank 0 on .*[Tt]imed out.*\nnothing was heard of rank 1: hung, or gone",
    ):
        train(
            make_params(devices=2, parallel="data", epochs=100_000, checkpoint_minutes=1e-9),
            tmp_path,
        )
    freezer.join()
    assert len(frozen) == 1
    assert not still_running(frozen, within_s=1)


def freeze_the_second(root: Path, frozen: list[psutil.Process]) -> None:
    wait_for(lambda: list(root.glob("runs/checkpoints/*/last.pt")))
    for process in psutil.Process().children(recursive=True):
        if nodes.AGENT not in process.cmdline() and process.environ().get("RANK") == "1":
            process.send_signal(signal.SIGSTOP)
            frozen.append(process)
