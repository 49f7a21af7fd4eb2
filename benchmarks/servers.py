"""The cost of the protocol of parameter servers, beside the training loop of a single device.

    python benchmarks/servers.py [--rows 300000] [--batch-size 2048 256] [--rounds 5] [--processes]
        [--seeds 0] [--workers 2]

Both train the shipped model, one of its ensemble, for one epoch of the built-in sample log, in one
process with one thread for its operators; the actors of the servers are threads of this process
(`training/servers/local_engine.py`), so nothing travels. The table has the median of the rounds,
which are interleaved: seconds and processor time of `Trainer.fit`, rows/s, and the single device's
processor time divided by that of the protocol.

With --processes, which needs Ray, processes run the same training as well: one device with all
cores, two ranks with `parallel: hybrid`, and two workers with two table servers. The second table
has the seconds of the whole stage in each round, the bytes of a step, and the logloss of the
validation rows.

With --seeds, only the logloss of the validation rows is compared. For each seed, one device and W
workers on threads (--workers) train with the same first weights and batches, with averages of
weights and without; the staleness is 2W - 1 and `dense_every` 8. --rows 1000000 gives the log of
benchmarks/results/servers.md.
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


def timed(run: Callable[[], object]) -> Taken:
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


def on_one_device(params: Params, root: Path) -> float:
    """Train on a single device; returns the logloss of the validation rows."""
    checkpoints = checkpoints_of(params, "cpu", root)
    fit(params, root, "cpu", checkpoints)
    checkpoints.remove()
    return logloss_of(root)


def on_threads(
    params: Params, root: Path, servers: int, workers: int, staleness: int, dense_every: int = 1
) -> float:
    """Train with parameter servers whose actors are threads of this process.

    Returns:
        The logloss of the validation rows.
    """
    options = params.train.servers.model_copy(
        update={
            "servers": servers,
            "workers": workers,
            "staleness": staleness,
            "dense_every": dense_every,
        }
    )
    params = with_values(params, train={"parallel": "servers", "servers": options})
    checkpoints = checkpoints_of(params, "cpu", root)
    with closing(LocalEngine()) as engine:
        fit_on_servers(params, root, checkpoints, engine)
    checkpoints.remove()
    return logloss_of(root)


def logloss_of(root: Path) -> float:
    """Return the last validation logloss of a training, and remove its bundle."""
    logloss = float((root / MODEL / HISTORY).read_text().splitlines()[-1].split(",")[2])
    shutil.rmtree(root / MODEL)
    return logloss


def main() -> None:
    """Run the rounds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[2048, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", action="store_true", help="also by processes, with Ray")
    parser.add_argument("--seeds", type=int, default=0, help="compare the logloss, for these seeds")
    parser.add_argument("--workers", type=int, default=2, help="workers of --seeds")
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
            if options.seeds:
                compare_logloss(of_size, root, options.seeds, options.workers)
                continue
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
    common = {"threads": "auto"}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    sent: dict[str, str] = {}
    for _ in range(num_rounds):
        for name, changes in kinds.items():
            started_s = time.perf_counter()
            with redirect_stdout(StringIO()):
                train(with_values(params, train=common | changes), root)
            seconds = time.perf_counter() - started_s
            if traffic := read_traffic(root, version_of(root / MODEL)):
                sent[name] = ", ".join(
                    f"{num_bytes / MB:.2f} {kind}"
                    for kind, num_bytes in traffic.bytes_of_step().items()
                )
            taken[name].append((seconds, logloss_of(root)))
    print("\n| | seconds of the stage | MB in a step | validation logloss |\n|---|---|---|---|")
    for name, rounds in taken.items():
        seconds_of_rounds = ", ".join(f"{seconds:.1f}" for seconds, _ in rounds)
        loglosses = ", ".join(f"{logloss:.5f}" for logloss in sorted({one for _, one in rounds}))
        print(f"| {name} | {seconds_of_rounds} | {sent.get(name, '')} | {loglosses} |", flush=True)


def compare_logloss(params: Params, root: Path, num_seeds: int, workers: int) -> None:
    """Train with each seed on one device and with stale workers, and print the differences."""
    print(f"\n| seed | averages | one device | {workers} workers | difference |")
    print("|---|---|---|---|---|")
    staleness = 2 * workers - 1
    differences: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(1, num_seeds + 1):
        for averages, of_kind in differences.items():
            of_seed = with_values(params, train={"seed": seed, "weight_averaging": averages})
            with redirect_stdout(StringIO()):
                expected = on_one_device(of_seed, root)
                found = on_threads(of_seed, root, 2, workers, staleness, dense_every=8)
            of_kind.append(found - expected)
            cells = f"{averages} | {expected:.5f} | {found:.5f} | {found - expected:+.5f}"
            print(f"| {seed} | {cells} |", flush=True)
    for averages, of_kind in differences.items():
        error = statistics.stdev(of_kind) / num_seeds**0.5 if num_seeds > 1 else 0.0
        print(f"averages {averages}: {statistics.mean(of_kind):+.5f} ±{error:.5f}")


def compare(params: Params, root: Path, num_rounds: int) -> None:
    """Train in turns, and print the medians."""
    runs: dict[str, Callable[[], float]] = {
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
