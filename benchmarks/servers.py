"""The cost of the protocol of parameter servers, beside the training loop of a single device.

    python benchmarks/servers.py [--rows 300000] [--batch-size 2048 256] [--rounds 5] [--processes]

Both train the shipped model, one of its ensemble, for one epoch of the built-in sample log, in one
process with one thread for its operators; the actors of the servers are threads of this process
(`training/servers/local_engine.py`), so nothing travels. The table has the median of the rounds,
which are interleaved: seconds and processor time of `Trainer.fit`, rows/s, and the single device's
processor time divided by that of the protocol.

With --processes, which needs Ray, processes run the same training as well: one device with all
cores, two ranks with `parallel: hybrid`, and two workers with two table servers. The second table
has the seconds of the whole stage in each round, the bytes of a step, and the logloss of the
validation rows. Weights are not averaged, because `dense_every` above 1 refuses averages.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from quality import make_features, with_values
from speed import machine

from common.bundle_layout import HISTORY, MODEL, version_of
from common.config.params import Params, load_params
from features.collect.stage import BUILT_IN
from training.loop.checkpoint import checkpoints_of
from training.servers.local_engine import LocalEngine
from training.servers.traffic import MB, read_traffic
from training.stage import fit, fit_on_servers, train


@dataclass(frozen=True)
class Taken:
    """The time of `Trainer.fit`, in seconds."""

    wall_s: float
    cpu_s: float


def timed(run: Callable[[], None]) -> Taken:
    """Run a training, and return the time of its `Trainer.fit`."""
    fit_of_trainer, taken = pl.Trainer.fit, []

    def timed_fit(*arguments: Any, **options: Any) -> None:
        started_s, cpu_started_s = time.perf_counter(), time.process_time()
        fit_of_trainer(*arguments, **options)
        taken.append(Taken(time.perf_counter() - started_s, time.process_time() - cpu_started_s))

    pl.Trainer.fit = timed_fit  # type: ignore[method-assign]
    try:
        run()
    finally:
        pl.Trainer.fit = fit_of_trainer  # type: ignore[method-assign]
    return taken[0]


def on_one_device(params: Params, root: Path) -> None:
    """Train on a single device."""
    checkpoints = checkpoints_of(params, "cpu", root)
    fit(params, root, "cpu", checkpoints)
    checkpoints.remove()
    shutil.rmtree(root / MODEL)


def on_threads(params: Params, root: Path, servers: int, workers: int, staleness: int) -> None:
    """Train with parameter servers whose actors are threads of this process."""
    options = params.train.servers.model_copy(
        update={"servers": servers, "workers": workers, "staleness": staleness}
    )
    params = with_values(params, train={"parallel": "servers", "servers": options})
    checkpoints = checkpoints_of(params, "cpu", root)
    with closing(LocalEngine()) as engine:
        fit_on_servers(params, root, checkpoints, engine)
    checkpoints.remove()
    shutil.rmtree(root / MODEL)


def main() -> None:
    """Run the rounds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[2048, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", action="store_true", help="also by processes, with Ray")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine.describe(1, "cpu"))
    params = load_params()
    params = with_values(
        params,
        data={"source": BUILT_IN},
        sample={"num_rows": options.rows},
        train={"epochs": 1, "ensemble_size": 1, "threads": 1, "validations": 1, "logger": "none"},
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with redirect_stdout(StringIO()):
            make_features(params, root)
        for batch_size in options.batch_size:
            of_size = with_values(params, train={"batch_size": batch_size})
            compare(of_size, root, options.rounds)
            if options.processes:
                compare_processes(of_size, root, options.rounds)


def compare_processes(params: Params, root: Path, num_rounds: int) -> None:
    """Run the train stage in turns, and print what each round took."""

    def with_servers(**options: int) -> dict[str, Any]:
        servers = params.train.servers.model_copy(update={"servers": 2, "workers": 2, **options})
        return {"parallel": "servers", "servers": servers}

    kinds: dict[str, dict[str, Any]] = {
        "one device": {},
        "hybrid, 2 ranks": {"parallel": "hybrid", "devices": 2},
        "servers, staleness 0": with_servers(staleness=0),
        "servers, staleness 3": with_servers(staleness=3),
        "servers, staleness 3, dense every 8": with_servers(staleness=3, dense_every=8),
    }
    common = {"weight_averaging": False, "threads": "auto"}
    taken: dict[str, list[tuple[float, str]]] = {name: [] for name in kinds}
    sent: dict[str, str] = {}
    for _ in range(num_rounds):
        for name, changes in kinds.items():
            started_s = time.perf_counter()
            with redirect_stdout(StringIO()):
                train(with_values(params, train=common | changes), root)
            seconds = time.perf_counter() - started_s
            logloss = (root / MODEL / HISTORY).read_text().splitlines()[-1].split(",")[2]
            taken[name].append((seconds, logloss))
            if traffic := read_traffic(root, version_of(root / MODEL)):
                sent[name] = ", ".join(
                    f"{num_bytes / MB:.2f} {kind}"
                    for kind, num_bytes in traffic.bytes_of_step().items()
                )
            shutil.rmtree(root / MODEL)
    print("\n| | seconds of the stage | MB in a step | validation logloss |\n|---|---|---|---|")
    for name, rounds in taken.items():
        seconds_of_rounds = ", ".join(f"{seconds:.1f}" for seconds, _ in rounds)
        loglosses = ", ".join(sorted({logloss for _, logloss in rounds}))
        print(f"| {name} | {seconds_of_rounds} | {sent.get(name, '')} | {loglosses} |", flush=True)


def compare(params: Params, root: Path, num_rounds: int) -> None:
    """Train in turns, and print the medians."""
    runs: dict[str, Callable[[], None]] = {
        "one device": lambda: on_one_device(params, root),
        "1 server, 1 worker, staleness 0": lambda: on_threads(params, root, 1, 1, 0),
        "2 servers, 1 worker, staleness 0": lambda: on_threads(params, root, 2, 1, 0),
        "2 servers, 2 workers, staleness 3": lambda: on_threads(params, root, 2, 2, 3),
    }
    taken: dict[str, list[Taken]] = {name: [] for name in runs}
    for _ in range(num_rounds):
        for name, run in runs.items():
            with redirect_stdout(StringIO()):
                taken[name].append(timed(run))
    print(f"\nbatches of {params.train.batch_size:,} rows\n")
    print(
        "| | seconds | processor time, s | one device / this, processor time |\n|---|---|---|---|"
    )
    for name, of_run in taken.items():
        wall_s = statistics.median(one.wall_s for one in of_run)
        cpu_s = statistics.median(one.cpu_s for one in of_run)
        ratio = statistics.median(
            base.cpu_s / one.cpu_s for base, one in zip(taken["one device"], of_run, strict=True)
        )
        print(f"| {name} | {wall_s:.2f} | {cpu_s:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
