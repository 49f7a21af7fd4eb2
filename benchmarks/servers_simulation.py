"""Asynchronous training on parameter servers, simulated: its speed, and what it learns.

    python benchmarks/servers_simulation.py [--only projection slow staleness] [--seeds 5]
        [--results build/servers.json] [--picture docs/images/servers.png]

No part runs on a cluster. The schedule of the steps is simulated (benchmarks/parameter_servers/),
with step times that are measured on one core of this CPU, and the stated costs of messages. The
log is the generated one, the model and its optimizers are the shipped ones, trained for one epoch,
without averages of weights.

    projection   rows per second of 1 to 64 machines, each with a worker and a server, beside
                 `train.parallel: hybrid` on the same machines
    slow         the real model is trained by the schedule of four workers, of which one is three
                 times slower: synchronous, with a bound on the staleness, and without
    staleness    the same with equally fast workers, at a staleness of 2W - 1, and the synchronous
                 training; both have the same first weights and the same batches

The parts take about 1, 6 and 13 minutes on one core. The parts that are not run are taken from the
file of --results, so that each can be run alone.
"""

import argparse
import json
import logging
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from quality import make_features, with_values

from benchmarks.parameter_servers import cluster
from benchmarks.parameter_servers.cluster import Machines, Measured, measure
from benchmarks.parameter_servers.learning import Learning, logloss_of, make_model
from benchmarks.parameter_servers.picture import write_picture
from benchmarks.parameter_servers.schedule import SameRows, Setting, Simulation
from common.artifact import Artifact
from common.config.params import Params, load_params
from common.layout import FEATURES
from features.collect.stage import BUILT_IN
from features.encode.feature_state import FeatureState
from training.bench.step import Step
from training.loop.batches import Batches, Rows
from training.loop.losses import logloss
from training.models.dlrm import DLRM

PARTS = ("projection", "slow", "staleness")
NUM_MACHINES = (1, 2, 4, 16, 64)
PROJECTED_BATCH = 2048
MEASURED_SIZES = (32, 128, 256, 512, 2048)  # rows of a step whose time is measured
MEASURED_STEPS = 40
NUM_WORKERS = 4  # of the part `slow`
SLOW = 3  # times as slow is one of them
POINTS = 8  # of a curve, until the time at which all are compared
STALE_WORKERS = (2, 4)  # of the part `staleness`
DENSE_EVERY = (1, 8)
VALID_BATCH = 8192
SPEEDS = (1, 16)  # of a machine, in cores like the measured one
GBIT_BYTES = 1e9 / 8


class Data(NamedTuple):
    """The features of a generated log.

    Attributes:
        params: The parameters.
        state: The feature state.
        files: The training files.
        valid: The validation rows, in batches.
    """

    params: Params
    state: FeatureState
    files: list[Path]
    valid: list[Rows]

    def batches(self, seed: int, batch_size: int) -> Batches:
        """Return the training batches of a seed."""
        train = self.params.train
        return Batches(
            self.files,
            self.state.schema,
            batch_size=batch_size,
            shuffle_rows=train.shuffle_rows,
            seed=seed,
        )

    def epoch(self, seed: int) -> list[Rows]:
        """Return the batches of an epoch."""
        batches = self.batches(seed, self.params.train.batch_size)
        return [batch.rows for batch in batches.steps(0, batches.steps_per_epoch)]

    def model(self, seed: int) -> DLRM:
        """Return the model with the first weights of a seed."""
        params = with_values(self.params, train={"seed": seed})
        some_dense = self.batches(seed, self.params.train.batch_size).some_dense()
        return make_model(params, self.state, some_dense)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense layers."""
        weights = self.model(1).parameters()
        return sum(weight.nbytes for weight in weights if weight.requires_grad)


class Curve(NamedTuple):
    """The validation losses of a training.

    Attributes:
        times_s: Simulated times.
        loglosses: The logloss of the validation rows at these times.
        epoch_s: The time at which the epoch has ended.
        final: The logloss after the epoch.
        rows_s: Rows per second.
        applied_between: The mean number of steps that were applied between the beginning of a step
            and its own application.
    """

    times_s: list[float]
    loglosses: list[float]
    epoch_s: float
    final: float
    rows_s: float
    applied_between: float


def make_data(num_rows: int, root: Path) -> Data:
    """Generate a log and make its features."""
    params = with_values(load_params(), data={"source": BUILT_IN}, sample={"num_rows": num_rows})
    make_features(params, root)
    state = FeatureState.load(root / FEATURES / "state")
    features = Artifact.open(root / FEATURES)
    valid = Batches(features.paths_in("valid"), state.schema, batch_size=VALID_BATCH)
    rows = [batch.rows for batch in valid.steps(0, valid.steps_per_epoch)]
    return Data(params, state, features.paths_in("train"), rows)


def measure_costs(data: Data) -> Measured:
    """Measure the steps of one device, of a worker and of a server."""
    batches_of_sizes = {}
    for size in MEASURED_SIZES:
        batches = data.batches(1, size)
        batches_of_sizes[size] = [batch.rows for batch in batches.steps(0, MEASURED_STEPS)]
    return measure(data.params, partial(data.model, 1), batches_of_sizes)


def print_measured(measured: Measured, dense_bytes: int, dim: int) -> None:
    """Print what was measured."""
    print("\nMeasured on one core, medians of CPU milliseconds of a step, and its distinct rows:")
    print("| rows | one device | worker | distinct table rows | KB pulled | KB pushed |")
    print("|---|---|---|---|---|---|")
    for k, size in enumerate(measured.device.num_rows):
        distinct = measured.distinct_rows[size]
        print(
            f"| {size:,} | {1e3 * measured.device.seconds[k]:.2f}"
            f" | {1e3 * measured.worker.seconds[k]:.2f} | {distinct:,.0f}"
            f" | {distinct * 4 * (dim + 1) / 1e3:,.0f} | {distinct * 4 * (dim + 1) / 1e3:,.0f} |"
        )
    print(
        f"A server reads a row in {1e6 * measured.read_row_s:.3f} us, updates one in"
        f" {1e6 * measured.update_row_s:.3f} us, and the dense layers ({dense_bytes / 1e6:.2f} MB)"
        f" in {1e3 * measured.update_dense_s:.2f} ms."
    )


def project(
    data: Data, measured: Measured, machines_of: Callable[[float], Machines]
) -> dict[str, dict[str, list[float]]]:
    """Print the projection, and return rows per second by speed and kind of training."""
    dim, train = data.params.model.embedding_dim, data.params.train
    found: dict[str, dict[str, list[float]]] = {}
    for speed in SPEEDS:
        machines = machines_of(speed)
        print(
            f"\nThousand rows/s, machines of {speed} x the measured core, B = {PROJECTED_BATCH:,}"
        )
        rows_s = found[str(speed)] = {}
        for n in NUM_MACHINES:
            for kind, rows_per_machine in (
                ("hybrid", PROJECTED_BATCH),
                ("hybrid, B of all", PROJECTED_BATCH / n),
            ):
                placement = cluster.hybrid_placement(
                    data.state.cardinalities,
                    dim,
                    train.embedding_optimizer.name,
                    round(n * rows_per_machine),
                    n,
                )
                value = cluster.project_hybrid(
                    placement, rows_per_machine, data.dense_bytes, measured, machines
                )
                rows_s.setdefault(kind, []).append(value)
            for name, staleness, dense_every in (
                ("staleness 0", 0, 1),
                ("W - 1", n - 1, 1),
                ("2W - 1", 2 * n - 1, 1),
                ("2W - 1, dense 8", 2 * n - 1, 8),
            ):
                projected = cluster.project_servers(
                    n,
                    PROJECTED_BATCH,
                    staleness,
                    dense_every,
                    dim,
                    data.dense_bytes,
                    measured,
                    machines,
                )
                rows_s.setdefault(name, []).append(projected.rows_s)
        print(f"| machines | {' | '.join(rows_s)} |\n|---{'|---' * len(rows_s)}|")
        for k, n in enumerate(NUM_MACHINES):
            cells = [f"{values[k] / 1e3:,.1f}" for values in rows_s.values()]
            print(f"| {n} | {' | '.join(cells)} |", flush=True)
    return found


def train_stale(
    data: Data,
    seed: int,
    setting: Setting,
    points_s: Sequence[float] = (),
) -> Curve:
    """Train for an epoch by the schedule of a setting."""
    batches = data.epoch(seed)
    work = Learning(
        data.params,
        data.model(seed),
        batches,
        setting.num_workers,
        setting.num_servers,
        setting.dense_every,
    )
    simulation = Simulation(setting, work)
    loglosses: list[float] = []
    for time_s in points_s:
        simulation.at(time_s, lambda: loglosses.append(work.logloss_of(data.valid)))
    steps = simulation.run(len(batches))
    work.finish()
    epoch_s = steps[-1].applied_s
    return Curve(
        list(points_s),
        loglosses,
        epoch_s,
        work.logloss_of(data.valid),
        sum(len(rows.labels) for rows in batches) / epoch_s,
        statistics.mean(step.applied_between for step in steps),
    )


def train_synchronous(
    data: Data,
    seed: int,
    step_s: Callable[[int], float] = lambda _: 0.0,
    points_s: Sequence[float] = (),
) -> Curve:
    """Train for an epoch, one step after the other; `step_s` returns the seconds of a step."""
    batches, model = data.epoch(seed), data.model(seed)
    train_on = Step(model, logloss, data.params.train)
    now_s, loglosses = 0.0, []
    for number, batch in enumerate(batches):
        ends_s = now_s + step_s(number)
        while len(loglosses) < len(points_s) and points_s[len(loglosses)] < ends_s:
            loglosses.append(logloss_of(model, data.valid))
        train_on(batch)
        now_s = ends_s
    final = logloss_of(model, data.valid)
    loglosses += [final] * (len(points_s) - len(loglosses))
    rows_s = sum(len(rows.labels) for rows in batches) / now_s if now_s else 0.0
    return Curve(list(points_s), loglosses, now_s, final, rows_s, 0.0)


def setting_of(
    data: Data,
    measured: Measured,
    machines: Machines,
    num_workers: int,
    staleness: int | None,
    dense_every: int,
    slow: float,
    seed: int,
) -> Setting:
    """Return a setting with as many servers as workers; worker 0 is `slow` times as slow."""
    num_steps = data.batches(seed, data.params.train.batch_size).steps_per_epoch
    factors = cluster.jitter(seed, num_steps)
    compute_s = measured.worker.at(data.params.train.batch_size) / machines.speed
    return Setting(
        num_workers,
        num_workers,
        staleness,
        dense_every,
        data.params.model.embedding_dim,
        data.dense_bytes,
        machines.costs(measured),
        lambda worker, ticket: compute_s * float(factors[ticket]) * (1 if worker else slow),
    )


def compare_slow(
    data: Data, measured: Measured, machines: Machines, seeds: Sequence[int]
) -> dict[str, list[Curve]]:
    """Train with a slow worker; print the table, and return the curves of each kind of training."""
    W, size = NUM_WORKERS, data.params.train.batch_size
    kinds: dict[str, tuple[int | None, int]] = {
        f"staleness {W - 1}": (W - 1, 1),
        f"staleness {2 * W - 1}": (2 * W - 1, 1),
        "unbounded": (None, 1),
        "unbounded, dense every 8": (None, 8),
    }
    make = partial(setting_of, data, measured, machines, W, slow=SLOW)
    num_steps = data.batches(1, size).steps_per_epoch
    distinct = measured.distinct_rows[size]
    alone = Simulation(make(None, 1, seed=1), SameRows([round(distinct / W)] * W)).run(num_steps)
    end_s = alone[-1].applied_s  # all are compared when the fastest has trained for an epoch
    points_s = [end_s * (k + 1) / POINTS for k in range(POINTS)]
    placement = cluster.hybrid_placement(
        data.state.cardinalities,
        data.params.model.embedding_dim,
        data.params.train.embedding_optimizer.name,
        size,
        W,
    )
    sending_s = cluster.hybrid_sending_s(placement, size, data.dense_bytes, machines)
    compute_s = measured.device.at(size / W) / machines.speed
    curves: dict[str, list[Curve]] = {}
    for seed in seeds:
        factors = cluster.jitter(seed, num_steps, W)
        factors[:, 0] *= SLOW
        slowest = factors.max(axis=1)
        curve = train_synchronous(
            data,
            seed,
            lambda k, slowest=slowest: compute_s * float(slowest[k]) + sending_s,
            points_s,
        )
        curves.setdefault("synchronous", []).append(curve)
        for name, (staleness, dense_every) in kinds.items():
            setting = make(staleness, dense_every, seed=seed)
            curves.setdefault(name, []).append(train_stale(data, seed, setting, points_s))
    print(
        f"\n{W} workers, one {SLOW} times slower, B = {size}, {len(seeds)} seeds;"
        f" equal time: {end_s:.1f} simulated seconds"
    )
    print(
        "| training | rows/s | steps applied between | logloss after equal time"
        " | minus synchronous | logloss after the epoch | minus synchronous |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, of_seeds in curves.items():
        pairs = list(zip(of_seeds, curves["synchronous"], strict=True))
        at_end = [one.loglosses[-1] for one in of_seeds]
        print(
            f"| {name} | {statistics.mean(one.rows_s for one in of_seeds):,.0f}"
            f" | {statistics.mean(one.applied_between for one in of_seeds):.1f}"
            f" | {statistics.mean(at_end):.5f}"
            f" | {spread([one.loglosses[-1] - sync.loglosses[-1] for one, sync in pairs])}"
            f" | {statistics.mean(one.final for one in of_seeds):.5f}"
            f" | {spread([one.final - sync.final for one, sync in pairs])} |",
            flush=True,
        )
    return curves


def compare_staleness(
    data: Data, measured: Measured, machines: Machines, seeds: Sequence[int]
) -> dict[str, list[float]]:
    """Train with a staleness of 2W - 1; print and return the loglosses minus the synchronous.

    Returns:
        The difference of each seed, by kind of training.
    """
    curves: dict[str, list[Curve]] = {}
    for seed in seeds:
        curves.setdefault("synchronous", []).append(train_synchronous(data, seed))
        for W, dense_every in product(STALE_WORKERS, DENSE_EVERY):
            setting = setting_of(data, measured, machines, W, 2 * W - 1, dense_every, 1, seed)
            name = f"W = {W}, staleness {2 * W - 1}, dense every {dense_every}"
            curves.setdefault(name, []).append(train_stale(data, seed, setting))
        found = ", ".join(f"{of_seeds[-1].final:.5f}" for of_seeds in curves.values())
        print(f"seed {seed}: {found}", flush=True)
    synchronous = [curve.final for curve in curves.pop("synchronous")]
    print(
        f"\nB = {data.params.train.batch_size}, {len(seeds)} seeds; logloss of the synchronous"
        f" training {statistics.mean(synchronous):.5f} ±{statistics.stdev(synchronous):.5f}"
    )
    print("| training | steps applied between | logloss minus synchronous | of each seed |")
    print("|---|---|---|---|")
    differences = {}
    for name, of_seeds in curves.items():
        minus = [one.final - sync for one, sync in zip(of_seeds, synchronous, strict=True)]
        differences[name] = minus
        between = statistics.mean(one.applied_between for one in of_seeds)
        each = ", ".join(f"{one:+.5f}" for one in minus)
        print(f"| {name} | {between:.1f} | {spread(minus)} | {each} |", flush=True)
    return differences


def spread(differences: Sequence[float]) -> str:
    """Format the mean of paired differences, and its standard error."""
    if len(differences) < 2:
        return f"{differences[0]:+.5f}"
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.mean(differences):+.5f} ±{error:.5f}"


def main() -> None:
    """Parse the arguments and run the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="the parts to run")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each kind")
    parser.add_argument("--slow-rows", type=int, default=300_000, help="rows of the log of `slow`")
    parser.add_argument("--stale-rows", type=int, default=1_000_000, help="those of `staleness`")
    parser.add_argument("--gbit", type=float, default=10, help="Gbit/s of the port of a machine")
    parser.add_argument("--reached", type=float, default=0.8, help="share of it that is reached")
    parser.add_argument("--latency-ms", type=float, default=0.05, help="from machine to machine")
    parser.add_argument("--call-ms", type=float, default=0.13, help="CPU time of a call, each end")
    parser.add_argument("--byte-ns", type=float, default=0.5, help="CPU time of a byte, each end")
    parser.add_argument("--wait-ms", type=float, default=0.23, help="a message of a call waits")
    parser.add_argument("--results", type=Path, help="a JSON file that keeps the results of parts")
    parser.add_argument("--picture", type=Path, help="a PNG to write, of all parts")
    options = parser.parse_args()
    logging.getLogger("torchrec").setLevel(logging.ERROR)

    def machines_of(speed: float) -> Machines:
        return Machines(
            speed,
            options.gbit * GBIT_BYTES * options.reached,
            options.latency_ms / 1e3,
            options.call_ms / 1e3,
            options.byte_ns / 1e9,
            options.wait_ms / 1e3,
        )

    torch.set_num_threads(1)
    seeds = range(1, options.seeds + 1)
    results: dict[str, Any] = {}
    if options.results and options.results.exists():
        results = json.loads(options.results.read_text())
    with tempfile.TemporaryDirectory() as scratch:
        data = make_data(options.slow_rows, Path(scratch, "slow"))
        measured = measure_costs(data)
        print_measured(measured, data.dense_bytes, data.params.model.embedding_dim)
        if "projection" in options.only:
            results["projection"] = project(data, measured, machines_of)
        if "slow" in options.only:
            curves = compare_slow(data, measured, machines_of(1), seeds)
            results["slow"] = {
                name: [curve._asdict() for curve in of_seeds] for name, of_seeds in curves.items()
            }
        if "staleness" in options.only:
            data = make_data(options.stale_rows, Path(scratch, "staleness"))
            results["staleness"] = compare_staleness(data, measured, machines_of(1), seeds)
    if options.results:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results, indent=1))
    if options.picture:
        if missing := sorted(set(PARTS) - results.keys()):
            parser.error(f"--picture shows all parts, but {', '.join(missing)} was not run")
        write_picture(options.picture, NUM_MACHINES, results)


if __name__ == "__main__":
    main()
