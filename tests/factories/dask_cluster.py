"""A real Dask cluster of two worker processes, and folders whose params.yaml names it."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common.layout import PARQUET
from tests.conftest import free_port, set_param
from tests.factories.deployments import START_S, until
from tests.factories.support import ROOT

READS = re.compile(r"tcp://\S+ reads (\S+)")
JOBS = re.compile(r"tcp://\S+: ((?:count|merge|encode) .*)")


class Cluster:
    """A Dask scheduler and two workers without nannies, which would restart a killed worker."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment | {"PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1"}
        port = str(free_port())
        self.address = f"tcp://127.0.0.1:{port}"
        self.scheduler = self.start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", port)
        self.earlier: list[tuple[str, str]] = []
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, command: str, name: str, *options: str) -> "subprocess.Popen[bytes]":
        """Start `dask COMMAND`; its output is written to the file `name`."""
        program = [sys.executable, "-m", f"distributed.cli.dask_{command}"]
        with (self.folder / name).open("wb") as log:
            return subprocess.Popen(
                [*program, *options, "--no-dashboard"],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def revive(self) -> None:
        """Start the workers that are not running, and let reads() count from now on."""
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
        self.earlier = [*self._logged(READS), *self._logged(JOBS)]

    def reads(self) -> list[tuple[str, str]]:
        """Return (worker, log) for each time that a worker began to read a log."""
        return self._new(READS)

    def jobs(self, phase: str = "") -> list[tuple[str, str]]:
        """Return (worker, title) for each time that a worker began a job of the features stage."""
        return [(name, title) for name, title in self._new(JOBS) if title.startswith(phase)]

    def _new(self, pattern: re.Pattern[str]) -> list[tuple[str, str]]:
        return [*(Counter(self._logged(pattern)) - Counter(self.earlier)).elements()]

    def _logged(self, pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
        return (
            (name, found)
            for name in self.workers
            for found in pattern.findall((self.folder / name).read_text())
        )

    def stop(self) -> None:
        """Kill the workers and the scheduler."""
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait()


def write_params(root: Path, **changes: object) -> None:
    """Write params.yaml with changes of the section `dask`, and link the code under test."""
    for room in ("common", "features", "serving", "training", "flows"):
        if not (root / room).exists():
            (root / room).symlink_to(ROOT / room)
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    set_param(root, "data", "source", "days")
    for name, value in changes.items():
        set_param(root, "dask", name, value)


def content(root: Path, folder: Path = PARQUET) -> dict[str, bytes]:
    """Return the files of a folder of root, path -> bytes."""
    files = (path for path in (root / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}
