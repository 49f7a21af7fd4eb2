"""The cost of a search: rows trained with each rule, speed-up by workers, start of a trial.

    OMP_WAIT_POLICY=passive python benchmarks/tune.py [--log PATH] [--trials 30] [--orders 400]

Random configurations are trained in full, by one worker and by two. The rules are then replayed on
their curves, in random orders, with the same code as a search: a trial knows all trials but the
last three before it.

    rows    the rows that all trials are trained on; 100 % without stopping
    worse   the logloss of the trial that is kept, minus that of the best one; the mean over orders
    best    in how many of the orders the best trial itself is kept

Targets: the median rule trains at most 45 % of the rows and is at most .0001 worse, Successive
Halving at most 35 % and .0003; two workers do at least 1.7 times the trials of one in a second, on
idle cores; a trial in a warm worker starts within .2 s.

The log is that of --log; else criteo/kaggle_span_80k.tsv of the folder REAL_LOGS, if that is set;
else the built-in sample.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from quality import log_of, make_features, with_values

from common.config.loading import check
from common.config.params import Params, load_params
from common.config.tune import Halving, Median, NoStopping, Stop, Tune
from training.tune.outcome import CurvePoint, Outcome
from training.tune.pool import LocalPool
from training.tune.samplers import ask
from training.tune.stopping import TOLERANCE, Finished, limits_of
from training.tune.study import Study
from training.tune.trial import Task, prepare_without_checkpoints

WINDOW, VALIDATIONS = 4, 12
SPACE: dict[str, Any] = {
    "model.embedding_dim": {"choice": [4, 8, 16]},
    "model.bottom_mlp": {"choice": [[32], [64], [128, 64]]},
    "model.top_mlp": {"choice": [[64], [128, 64], [256, 128]]},
    "model.interaction": {
        "choice": [{"name": "dot"}, {"name": "cat"}, {"name": "cross", "layers": 2, "rank": 16}]
    },
    "train.batch_size": {"choice": [256, 512, 1024]},
    "train.dense_optimizer.lr": {"low": 0.0003, "high": 0.03, "log": True},
    "train.embedding_optimizer.lr": {"low": 0.003, "high": 0.3, "log": True},
}
RULES: dict[str, Stop] = {
    "none": NoStopping(name="none"),
    "median from 1/12": Median(name="median", startup=5, warmup=1 / 12),
    "median from 1/4": Median(name="median", startup=5, warmup=1 / 4),
    "successive_halving, eta 3 from 1/12": Halving(
        name="successive_halving", eta=3, min_share=1 / 12
    ),
    "hyperband, eta 3 from 1/12": Halving(name="hyperband", eta=3, min_share=1 / 12),
}


class Replay(NamedTuple):
    """The result of a rule in one order of the trials.

    Attributes:
        rows: The share of the rows that are trained.
        kept: The logloss of the trial that is kept.
    """

    rows: float
    kept: float


def replay(stop: Stop, curves: Sequence[Sequence[CurvePoint]]) -> Replay:
    """Run a rule on trials in their order, from their complete curves."""
    known: list[Finished] = []
    rows, kept = 0.0, float("inf")
    for number, curve in enumerate(curves):
        limits = limits_of(stop, number, known[: max(0, number - WINDOW + 1)], VALIDATIONS)
        seen: list[CurvePoint] = []
        for point in curve:
            seen.append(point)
            best = min(one.logloss for one in seen)
            reached = [one for one in limits if one.share <= point.share + TOLERANCE]
            if any(best > one.logloss for one in reached):
                break
        rows += seen[-1].share
        if len(seen) == len(curve):
            kept = min(kept, *(one.logloss for one in seen))
        known.append(Finished(number, seen))
    return Replay(rows / len(curves), kept)


def replay_in_orders(outcomes: Sequence[Outcome], num_orders: int) -> None:
    """Print the table of the rules."""
    curves = [one.result.curve for one in outcomes if one.result]
    best = min(point.logloss for curve in curves for point in curve)
    rng = np.random.default_rng(1)
    orders = [rng.permutation(len(curves)) for _ in range(num_orders)]
    print(f"\n{len(curves)} trainings, {num_orders} orders\n")
    print("| rule | rows | worse | best |\n|---|---|---|---|")
    for name, stop in RULES.items():
        results = [replay(stop, [curves[k] for k in order]) for order in orders]
        rows = statistics.mean(one.rows for one in results)
        worse = statistics.mean(one.kept - best for one in results)
        share = statistics.mean(one.kept == best for one in results)
        print(f"| {name} | {rows:.0%} | {worse:.5f} | {share:.0%} |")


def run(tasks: Sequence[Task], num_workers: int) -> tuple[list[Outcome], float]:
    """Run tasks, and return their outcomes and the seconds that they took in warm workers."""
    with LocalPool(num_workers) as pool:
        for worker in range(num_workers):
            pool.submit(worker, tasks[0])
        for _ in range(num_workers):
            pool.next_finished()
        outcomes: dict[int, Outcome] = {}
        waiting = list(enumerate(tasks))
        started = time.perf_counter()
        while len(outcomes) < len(tasks):
            while waiting and pool.has_room():
                pool.submit(*waiting.pop(0))
            key, outcome = pool.next_finished()
            outcomes[key] = outcome
        seconds = time.perf_counter() - started
    return [outcomes[key] for key in range(len(tasks))], seconds


def overhead_s(tasks: Sequence[Task]) -> float:
    """Return the median seconds from a task to the first step, in this process once it is warm."""
    seconds = []
    for task in tasks:
        started = time.perf_counter()
        prepared = prepare_without_checkpoints(task.params, task.root)
        prepared.make_trainer([], logger=False)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def main() -> None:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", help="a log in the shipped schema")
    parser.add_argument("--trials", type=int, default=30, help="configurations to train")
    parser.add_argument("--orders", type=int, default=400, help="random orders of them")
    arguments = parser.parse_args()
    train = {"logger": "none", "epochs": 3, "validations": VALIDATIONS}
    params: Params = with_values(load_params(), data={"source": log_of(arguments.log)}, train=train)
    settings: dict[str, Any] = {
        "seed": 1,
        "trials": arguments.trials,
        "window": WINDOW,
        "parallel": 2,
        "threads": 1,
        "sampler": {"name": "random"},
        "stop": {"name": "none"},
        "objectives": ["logloss"],
        "trade": None,
        "confirm": None,
        "set": {},
        "space": SPACE,
    }
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_features(params, root)
        study = Study(params, check(Tune, settings, Path("tune.yaml")), root)
        with study.opened():
            tasks = [
                study.task(f"trial {number}", ask(study.tune, number, [])[0])
                for number in range(arguments.trials)
            ]
            print(f"a trial starts within {overhead_s(tasks[:6]):.3f} s in a warm process")
            outcomes, of_two = run(tasks, 2)
            same, of_one = run(tasks, 1)
        assert outcomes == same, "the outcomes depend on the number of workers"
        print(f"1 worker: {len(tasks) / of_one:.3f} trials/s; 2 workers: {of_one / of_two:.2f} x")
        replay_in_orders(outcomes, arguments.orders)


if __name__ == "__main__":
    main()
