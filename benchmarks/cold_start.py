"""The time from `clickmill stage train` to the end of the first step, beside `import torch`.

    python benchmarks/cold_start.py --features artifacts/features [--before OLD] [--rounds 9]

Every run is a process of its own, and the runs take turns. `set-up` is the part of the time that
loads the feature state and makes the model, the batches and the Trainer; `import torch` is a
process that does nothing else. OLD is a checkout to compare with.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from speed.machine import describe

IMPORT_TORCH = "import torch"
# `clickmill stage train`, which ends after the first step and prints how long the set-up took.
TRAIN = """
import builtins, json, os, sys, time

original, setup = builtins.__import__, {}


def end_at_first_step(*_):
    print("RESULT", json.dumps(time.perf_counter() - setup["started_s"]), flush=True)
    os._exit(0)


def watched_import(name, *arguments, **options):
    module = original(name, *arguments, **options)
    if name == "training.stage" and not setup:
        setup["started_s"] = 0.0
        import training.stage as stage
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(end_at_first_step)
        prepare = stage.prepare

        def timed_prepare(*arguments):
            setup["started_s"] = time.perf_counter()
            return prepare(*arguments)

        stage.prepare = timed_prepare
    return module


builtins.__import__ = watched_import
sys.argv = ["clickmill", "stage", "train"]
from flows.cli.main import app

app()
"""


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, required=True, help="artifacts/features")
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    checkouts = {"after": Path(__file__).parents[1]}
    if options.before:
        checkouts = {"before": options.before.resolve()} | checkouts
    seconds: dict[str, list[float]] = {name: [] for name in ("import torch", *checkouts)}
    setup_s: dict[str, list[float]] = {name: [] for name in checkouts}
    for _ in range(options.rounds):
        seconds["import torch"].append(run([sys.executable, "-c", IMPORT_TORCH], Path.cwd(), "")[0])
        for name, checkout in checkouts.items():
            whole_s, output = train(checkout, options.features.resolve())
            seconds[name].append(whole_s)
            setup_s[name].append(json.loads(output.rpartition("RESULT ")[2]))
    print(describe(torch.get_num_threads(), "cpu"))
    print("\n| process | seconds | of which set-up | without set-up / import torch |")
    print("|---|---|---|---|")
    torch_s = statistics.median(seconds["import torch"])
    print(f"| `import torch` | {torch_s:.2f} | | 1 |")
    for name in checkouts:
        whole_s, of_setup_s = statistics.median(seconds[name]), statistics.median(setup_s[name])
        ratio = (whole_s - of_setup_s) / torch_s
        print(
            f"| `clickmill stage train`, {name} | {whole_s:.2f} | {of_setup_s:.2f} | {ratio:.2f} |"
        )


def train(checkout: Path, features: Path) -> tuple[float, str]:
    """Start the train stage with the code of a checkout; return its seconds and its output."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "artifacts").mkdir()
        (root / "artifacts/features").symlink_to(features)
        (root / "artifacts/raw").symlink_to(features.parent / "raw")
        (root / "params.yaml").symlink_to(checkout / "params.yaml")
        return run([sys.executable, "-c", TRAIN], root, str(checkout))


def run(command: list[str], root: Path, python_path: str) -> tuple[float, str]:
    """Run a command; return its seconds and its output."""
    started_s = time.perf_counter()
    process = subprocess.run(
        command,
        cwd=root,
        env=os.environ | {"PYTHONPATH": python_path},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return time.perf_counter() - started_s, process.stdout


if __name__ == "__main__":
    main()
