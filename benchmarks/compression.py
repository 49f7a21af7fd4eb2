"""Effect of each step of a compression on quality, size and speed, of models with several seeds.

    python benchmarks/compression.py [LOG] [--seeds 3] [--rows 0.5] [--units 0.25]

Each model is trained with the shipped parameters and compressed with nothing trained again. The
figures are means over the seeds, on the validation rows:

    logloss, AUC       the change, after the recalibration and, in brackets, before it
    MiB, x smaller     the stored tensors
    x rows/s           rows that a thread scores in the time in which the original scores one; both
                       score the same rows in turn, by processor time

It fails if int8 costs more than LIMIT of logloss. The log is the built-in sample unless given.
"""

import argparse
import statistics
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from quality import make_features, with_values

from common.bundle_layout import MODEL
from common.config.params import Params, load_params
from features.collect.stage import BUILT_IN
from training.compression.compress_model import Steps
from training.compression.judge import Judged
from training.compression.stage import compress
from training.stage import train

LIMIT = 0.0001
INT8 = "int8"


def compressed(params: Params, root: Path, seed: int, steps: Steps) -> list[Judged]:
    """Train a model and compress it."""
    with redirect_stdout(StringIO()):
        train(with_values(params, train={"seed": seed}), root)
        return compress(root / MODEL, root / "small", steps, root)


def mean_change(runs: list[list[Judged]], k: int, metric: str, when: str = "metrics") -> float:
    """Return the mean difference between the model of row k and the original of the same seed."""
    return statistics.mean(getattr(run[k], when)[metric] - run[0].metrics[metric] for run in runs)


def change_cell(runs: list[list[Judged]], k: int, metric: str) -> str:
    """Format the change of a metric, and in brackets that before the recalibration."""
    before = mean_change(runs, k, metric, "metrics_before")
    return f"{mean_change(runs, k, metric):+.5f} ({before:+.5f})"


def line(runs: list[list[Judged]], k: int) -> str:
    """Format a row of the table."""
    name, original = runs[0][k].name, runs[0][0]
    size = statistics.mean(run[k].footprint.bytes for run in runs)
    speeds = [run[k].speed or 1.0 for run in runs]
    cells = [
        name,
        change_cell(runs, k, "logloss"),
        change_cell(runs, k, "auc"),
        f"{size / 2**20:.2f}",
        f"{original.footprint.bytes / size:.2f}",
        f"{statistics.mean(speeds):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Train and compress in a temporary folder, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", nargs="?", type=Path, help="a log in the shipped schema")
    parser.add_argument("--seeds", type=int, default=3, help="trainings")
    parser.add_argument("--rows", type=float, default=0.5, help="the share of rows to leave out")
    parser.add_argument("--units", type=float, default=0.25, help="the share of units to remove")
    options = parser.parse_args()
    source = str(options.log.resolve()) if options.log else BUILT_IN
    params = with_values(load_params(), data={"source": source})
    steps = Steps(8, options.rows, options.units)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_features(params, root)
        runs = [compressed(params, root, seed, steps) for seed in range(1, options.seeds + 1)]
    losses = ", ".join(f"{run[0].metrics['logloss']:.5f}" for run in runs)
    print(f"logloss of the originals on the validation rows: {losses}")
    print("| model | logloss | AUC | MiB | x smaller | x rows/s |\n|---|---|---|---|---|---|")
    for k in range(len(runs[0])):
        print(line(runs, k))
    (int8,) = (k for k, judged in enumerate(runs[0]) if judged.name == INT8)
    if mean_change(runs, int8, "logloss") > LIMIT:
        sys.exit(f"int8 costs more than {LIMIT} of logloss")


if __name__ == "__main__":
    main()
