"""Exact AUC of more rows than memory holds: ours against scikit-learn's, which sorts all rows in memory.

    python benchmarks/auc.py [--rows 10000000 100000000] [--peer-rows 10000000] [--rounds 3]

Each contender runs in a process of its own. Seconds are the processor's, on one thread; drawing the scores is not counted. Ours computes
every figure of the evaluation (AUC, logloss, calibration, accuracy) and keeps its sorted runs in a file, 8 bytes a row, in the folder for
temporary files. The AUC of the same rows is checked to be the same.
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
from benchmarks.auc import drawn

def ours(num_rows):
    from training.evaluation.metrics import compute_metrics, sums_of_all
    from training.evaluation.external_sort import Ranking
    ranking, seconds = Ranking(Path(tempfile.gettempdir())), 0.0
    for labels, scores in drawn(num_rows):
        started = time.process_time()
        ranking.add(labels, scores)
        seconds += time.process_time() - started
    started = time.process_time()
    found = compute_metrics(sums_of_all(ranking))
    return found["auc"], seconds + time.process_time() - started

def sklearn(num_rows):
    from sklearn.metrics import roc_auc_score
    labels, scores = (np.concatenate(parts) for parts in zip(*drawn(num_rows)))
    started = time.process_time()
    return roc_auc_score(labels, scores), time.process_time() - started

auc, seconds = {"ours": ours, "sklearn": sklearn}[sys.argv[1]](int(sys.argv[2]))
print(json.dumps([auc, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""
BLOCK_ROWS = 1 << 16


class Run(NamedTuple):
    auc: float
    seconds: float
    mib: float


def drawn(num_rows: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Labels and scores, block by block: normal logits about -2, labels that follow them."""
    random = np.random.default_rng(1)
    for start in range(0, num_rows, BLOCK_ROWS):
        size = min(BLOCK_ROWS, num_rows - start)
        scores = 1 / (1 + np.exp(2 - random.standard_normal(size, np.float32)))
        yield (random.random(size, np.float32) < scores).astype(np.uint8), scores


def measure(contender: str, num_rows: int) -> Run:
    output = subprocess.run(
        [sys.executable, "-c", CONTENDER, contender, str(num_rows)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return Run(*json.loads(output.splitlines()[-1]))


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--rows", type=int, nargs="+", default=[10_000_000, 100_000_000])
    arguments.add_argument("--peer-rows", type=int, default=10_000_000)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    contenders = [("sklearn", given.peer_rows), *(("ours", rows) for rows in given.rows)]
    runs: dict[tuple[str, int], list[Run]] = {contender: [] for contender in contenders}
    for _ in range(given.rounds):
        for contender in contenders:
            runs[contender].append(measure(*contender))
    print(f"{'':>8} {'rows':>12} {'CPU s':>8} {'rows/s':>12} {'MiB':>6}  AUC")
    for (name, num_rows), of_contender in runs.items():
        seconds = median(run.seconds for run in of_contender)
        mib = max(run.mib for run in of_contender)
        print(
            f"{name:>8} {num_rows:>12,} {seconds:>8.2f} {num_rows / seconds:>12,.0f} {mib:>6,.0f}  {of_contender[0].auc!r}"
        )
    aucs = {
        run.auc
        for (_, num_rows), of_contender in runs.items()
        if num_rows == given.peer_rows
        for run in of_contender
    }
    if max(aucs) - min(aucs) > 1e-12:
        raise SystemExit(f"the contenders disagree: {aucs}")


if __name__ == "__main__":
    main()
