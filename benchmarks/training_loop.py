"""Compare the whole training loop of two checkouts on the same features, interleaved.

    python benchmarks/training_loop.py --before OLD --after . --features artifacts/features

Each run is a process of its own: the train stage with the shipped parameters, in a directory that
links the features. OLD may be a checkout from before the rooms were moved (`training/train.py`).
The table has the seconds and the processor time of `Trainer.fit`: reading, training, validation,
checkpoints and logging, without imports and export. On a machine that others use, only the
processor time is meaningful.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUN = """
import json, sys, time
from pathlib import Path

import pytorch_lightning as pl

root, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
try:
    from common.config.params import load_params
    from training.stage import train
except ImportError:
    from features.params import load_params
    from training.train import train
params = load_params()
params = params.model_copy(update={"train": params.train.model_copy(update=settings)})

fit, taken = pl.Trainer.fit, {}


def timed_fit(*arguments, **options):
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    fit(*arguments, **options)
    taken.update(seconds=time.perf_counter() - started_s, cpu_s=time.process_time() - cpu_started_s)


pl.Trainer.fit = timed_fit
train(params, root)
print("RESULT", json.dumps(taken))
"""


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="checkout before the change")
    parser.add_argument("--after", type=Path, required=True, help="checkout after the change")
    parser.add_argument("--features", type=Path, required=True, help="artifacts/features")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    for batch_size in arguments.batch_size:
        settings = {"batch_size": batch_size, "epochs": arguments.epochs, "validations": 10}
        seconds: dict[str, list[float]] = {"before": [], "after": []}
        cpu_seconds: dict[str, list[float]] = {"before": [], "after": []}
        for number in range(arguments.rounds):
            for name in ("before", "after"):
                checkout = getattr(arguments, name).resolve()
                timing = run(checkout, arguments.features.resolve(), settings)
                seconds[name].append(timing["seconds"])
                cpu_seconds[name].append(timing["cpu_s"])
            print(
                f"B = {batch_size:,}, round {number + 1}:"
                f" {seconds['before'][-1]:.2f} s before, {seconds['after'][-1]:.2f} s after;"
                f" processor {cpu_seconds['before'][-1]:.2f} s before,"
                f" {cpu_seconds['after'][-1]:.2f} s after",
                flush=True,
            )
        print(
            f"B = {batch_size:,}, after / before: {ratio(seconds):.3f} of the seconds,"
            f" {ratio(cpu_seconds):.3f} of the processor time (medians of the rounds' ratios)",
            flush=True,
        )


def run(checkout: Path, features: Path, settings: dict[str, int]) -> dict[str, float]:
    """Train once with the code of a checkout; return the timing."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "artifacts").mkdir()
        (root / "artifacts/features").symlink_to(features)
        output = subprocess.run(
            [sys.executable, "-c", RUN, str(root), json.dumps(settings)],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    result: dict[str, float] = json.loads(output.rpartition("RESULT ")[2])
    return result


def ratio(taken: dict[str, list[float]]) -> float:
    """Return the median over the rounds of after / before."""
    return statistics.median(
        after / before for before, after in zip(taken["before"], taken["after"], strict=True)
    )


if __name__ == "__main__":
    main()
