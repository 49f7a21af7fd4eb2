"""Measure the cost of the checks of artifacts: ingest and features with and without, in turns.

    python benchmarks/checked_artifacts.py [--rows 500000] [--rounds 7]

Prints the median CPU seconds of each stage. Every round makes the output of the stage from scratch.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median
from unittest.mock import patch

from common.config.params import Params, load_params
from common.files import remove
from common.layout import FEATURES, PARQUET
from features.collect.stage import collect
from features.dataset.stage import build_features
from features.ingest.stage import ingest

STAGES = {"ingest": (ingest, PARQUET), "features": (build_features, FEATURES)}


def seconds_of(stage: str, params: Params, root: Path) -> float:
    """Return the CPU seconds of a stage that finds no output of an earlier run."""
    run, output = STAGES[stage]
    remove(root / output)
    started_s = time.process_time()
    with redirect_stdout(StringIO()):
        run(params, root)
    return time.process_time() - started_s


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the log")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that are measured")
    options = parser.parse_args()
    values = load_params().model_dump(by_alias=True)
    values["data"]["source"] = "sample"
    values["sample"]["num_rows"] = options.rows
    params = Params.model_validate(values)
    taken: dict[tuple[str, bool], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        with redirect_stdout(StringIO()):
            collect(params, root)
        for number in range(options.rounds + 1):  # the first one warms up
            for is_checked in (True, False):
                no_check = patch("common.artifact.check_file")
                with nullcontext() if is_checked else no_check:
                    for stage in STAGES:
                        seconds = seconds_of(stage, params, root)
                        if number:
                            taken[stage, is_checked].append(seconds)
    print("stage     checked  unchecked  share")
    for stage in STAGES:
        checked, unchecked = (median(taken[stage, is_checked]) for is_checked in (True, False))
        print(f"{stage:<9} {checked:7.3f}  {unchecked:9.3f}  {checked / unchecked - 1:5.1%}")


if __name__ == "__main__":
    main()
