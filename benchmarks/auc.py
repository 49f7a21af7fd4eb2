"""The exact AUC of more rows than fit into memory, against scikit-learn, which sorts in memory.

    python benchmarks/auc.py [--rows 10000000 100000000] [--peer-rows 10000000] [--rounds 3]

Each contender runs in its own process. The table has seconds of processor time on one thread,
without the time to draw the scores. This project's code computes every figure of the evaluation
(AUC, logloss, calibration, accuracy) and keeps its sorted runs in a temporary file, 8 bytes per
row. The script fails if the two AUCs of the same rows differ.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONTENDER = """
import json, resource, sys, tempfile, time
from pathlib import Path
import numpy as np
from benchmarks.auc import draw_scores

def ours(num_rows):
    from training.evaluation.metrics import compute_metrics, sums_of_all
    from training.evaluation.external_sort import Ranking
    ranking, seconds = Ranking(Path(tempfile.gettempdir())), 0.0
    for labels, scores in draw_scores(num_rows):
        started = time.process_time()
        ranking.add(labels, scores)
        seconds += time.process_time() - started
    started = time.process_time()
    found = compute_metrics(sums_of_all(ranking))
    return found["auc"], seconds + time.process_time() - started

def sklearn(num_rows):
    from sklearn.metrics import roc_auc_score
    labels, scores = (np.concatenate(parts) for parts in zip(*draw_scores(num_rows)))
    started = time.process_time()
    return roc_auc_score(labels, scores), time.process_time() - started

auc, seconds = {"ours": ours, "sklearn": sklearn}[sys.argv[1]](int(sys.argv[2]))
print(json.dumps([auc, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""
BLOCK_ROWS = 1 << 16


class Run(NamedTuple):
    """The AUC, the processor time and the peak memory of a contender."""

    auc: float
    seconds: float
    mib: float


def draw_scores(num_rows: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Yield blocks of labels and scores: logits are normal with mean -2, labels follow them."""
    random = np.random.default_rng(1)
    for start in range(0, num_rows, BLOCK_ROWS):
        size = min(BLOCK_ROWS, num_rows - start)
        scores = 1 / (1 + np.exp(2 - random.standard_normal(size, np.float32)))
        yield (random.random(size, np.float32) < scores).astype(np.uint8), scores


def measure(contender: str, num_rows: int) -> Run:
    """Run a contender in its own process."""
    output = subprocess.run(
        [sys.executable, "-c", CONTENDER, contender, str(num_rows)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return Run(*json.loads(output.splitlines()[-1]))


def main() -> None:
    """Measure all contenders and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[10_000_000, 100_000_000], help="numbers of rows"
    )
    parser.add_argument(
        "--peer-rows", type=int, default=10_000_000, help="number of rows for scikit-learn"
    )
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; the median counts")
    options = parser.parse_args()
    contenders = [("sklearn", options.peer_rows), *(("ours", rows) for rows in options.rows)]
    runs: dict[tuple[str, int], list[Run]] = {contender: [] for contender in contenders}
    for _ in range(options.rounds):
        for contender in contenders:
            runs[contender].append(measure(*contender))
    print(f"{'':>8} {'rows':>12} {'CPU s':>8} {'rows/s':>12} {'MiB':>6}  AUC")
    for (name, num_rows), of_contender in runs.items():
        seconds = median(run.seconds for run in of_contender)
        mib = max(run.mib for run in of_contender)
        print(
            f"{name:>8} {num_rows:>12,} {seconds:>8.2f} {num_rows / seconds:>12,.0f} {mib:>6,.0f}"
            f"  {of_contender[0].auc!r}"
        )
    aucs = {
        run.auc
        for (_, num_rows), of_contender in runs.items()
        if num_rows == options.peer_rows
        for run in of_contender
    }
    if max(aucs) - min(aucs) > 1e-12:
        raise SystemExit(f"the contenders disagree: {aucs}")


if __name__ == "__main__":
    main()
