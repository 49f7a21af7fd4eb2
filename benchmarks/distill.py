"""Quality of a small distilled model beside the same model trained on the labels alone.

    python benchmarks/distill.py [--log PATH] [--seeds 5] [--weight 0.5]

The teacher is an ensemble of three models of the shipped defaults. The student has narrow layers.
Each seed trains the student twice, on the labels and distilled; the first six sevenths of the log
are for training. The choice of weights is by validation; the figures are of the test rows.

    test logloss, AUC   of the teacher, and of both students of each seed
    MiB                 the weights of the bundle
    CPU s               processor time of a training, all threads together; the first distilled
                        training also scores the training rows with the teacher

Target: the distilled student is better in at least four of five seeds.

The log is that of --log; else criteo/kaggle_span_80k.tsv of the folder REAL_LOGS, if that is set;
else the built-in sample.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from quality import encoded, make_features, train_and_score, with_values

from common.bundle_layout import MODEL
from common.config.params import Params, load_params
from features.collect.stage import BUILT_IN
from training.evaluation.metrics import metrics_of_rows

TEACHER_SIZE = 3
FIRST_SEED = 11  # of the students; the teachers have 1, 2 and 3
STUDENT = {"embedding_dim": 4, "bottom_mlp": [32], "top_mlp": [64]}
MIB = 1 << 20


class Trained(NamedTuple):
    """The figures of a training."""

    logloss: float
    auc: float
    mib: float
    cpu_s: float


def measure(params: Params, root: Path, seed: int) -> Trained:
    """Train, and score the test rows."""
    started = time.process_time()
    _, scores = train_and_score(params, root, seed)
    cpu_s = time.process_time() - started
    labels = encoded(root)[0][2].labels.numpy()
    found = metrics_of_rows(labels, scores)
    num_bytes = sum(path.stat().st_size for path in (root / MODEL).glob("weights*.safetensors"))
    return Trained(found["logloss"], found["auc"], num_bytes / MIB, cpu_s)


def log_of(given: Path | None) -> str:
    """Return the log to train on, for data.source."""
    if given is not None:
        return str(given.resolve())
    if folder := os.environ.get("REAL_LOGS"):
        return str(Path(folder, "criteo/kaggle_span_80k.tsv").resolve())
    return BUILT_IN


def line(name: str, found: Trained) -> str:
    """Format a line of the table."""
    return (
        f"| {name} | {found.logloss:.5f} | {found.auc:.4f} | {found.mib:.2f} | {found.cpu_s:.1f} |"
    )


def compare(params: Params, root: Path, num_seeds: int, weight: float) -> None:
    """Train the teacher and the students, and print the table."""
    print("| model | test logloss | AUC | MiB | CPU s |\n|---|---|---|---|---|")
    teacher = measure(with_values(params, train={"ensemble_size": TEACHER_SIZE}), root, seed=1)
    print(line(f"teacher, an ensemble of {TEACHER_SIZE}", teacher), flush=True)
    shutil.move(root / MODEL, root / "teacher")
    on_labels = with_values(params, model=STUDENT)
    distill: dict[str, Any] = {"teachers": ["teacher"], "weight": weight}
    distilled = with_values(on_labels, train={"distill": distill})
    pairs = []
    for seed in range(FIRST_SEED, FIRST_SEED + num_seeds):
        pair = measure(on_labels, root, seed), measure(distilled, root, seed)
        print(line(f"student, labels alone, seed {seed}", pair[0]))
        print(line(f"student, distilled, seed {seed}", pair[1]), flush=True)
        pairs.append(pair)
    for name, students in zip(("labels alone", "distilled"), zip(*pairs, strict=True), strict=True):
        means = Trained(*(statistics.mean(figures) for figures in zip(*students, strict=True)))
        print(line(f"student, {name}, mean", means))
    differences = [soft.logloss - hard.logloss for hard, soft in pairs]
    ratio = statistics.median(soft.cpu_s / hard.cpu_s for hard, soft in pairs)
    num_better = sum(difference < 0 for difference in differences)
    print(
        f"\nDistilled is better in {num_better} of {num_seeds} seeds, by"
        f" {-statistics.mean(differences):.5f} in the mean; its training takes {ratio:.3f} times"
        " the CPU time (median)."
    )


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, help="a log in the shipped schema")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each student")
    parser.add_argument("--weight", type=float, default=0.5, help="weight of the teacher's scores")
    arguments = parser.parse_args()
    params = with_values(
        load_params(), data={"source": log_of(arguments.log)}, train={"logger": "none"}
    )
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_features(params, root)
        compare(params, root, arguments.seeds, arguments.weight)


if __name__ == "__main__":
    main()
