"""The files of the metrics, on a disk that is full."""

import subprocess
import sys
from pathlib import Path

from prometheus_client.multiprocess import MultiProcessCollector

from serving import server
from serving.options import METRICS_FOLDER
from tests.factories.small_disk import small_disk
from tests.factories.support import ROOT

COUNT = """
import os, sys
from serving.metrics import Metrics, reserve_space
reserve_space()
metrics = Metrics()
print(flush=True)
sys.stdin.readline()
for number in range(3000):
    metrics.requests.labels("model", str(number)).inc()
metrics.ready.labels("model", "champion").set(1)
print(os.getpid())
"""


def test_a_full_disk_kills_no_worker_and_a_dead_one_keeps_no_space(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    with small_disk(folder, 20 << 20) as leave:
        worker = subprocess.Popen(
            [sys.executable, "-c", COUNT],
            cwd=ROOT,
            env={METRICS_FOLDER: str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert worker.stdout is not None
        worker.stdout.readline()
        leave(0)
        worker.communicate(b"\n")
        assert worker.returncode == 0
        (counts,) = folder.glob("counter_*.db")
        before = sum(metric_sum(folder).values())
        server._shrink(counts)
        assert counts.stat().st_size < 1 << 20
        assert sum(metric_sum(folder).values()) == before > 3000


def metric_sum(folder: Path) -> dict[str, float]:
    """Return the sum of the samples of each metric."""
    collector = MultiProcessCollector(None, path=str(folder))  # type: ignore[no-untyped-call]
    metrics = collector.collect()  # type: ignore[no-untyped-call]
    return {one.name: sum(each.value for each in one.samples) for one in metrics}
