"""The time of ingest and features for one new day, after one day of history and after many.

    python benchmarks/new_day.py [--days 10] [--rows 500000]

The log has one file per day of the generated sample. The table has the seconds of each stage on
each day. The stages process the rows of the new day, those of the day before, which become training
rows, and the counts of all values seen so far.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path

from common.config.params import Params, load_params
from common.progress import Progress
from features.collect.stage import collect
from features.dataset.stage import build_features
from features.ingest.stage import ingest
from features.sample.generate import write_sample
from features.schema.schema import load_schema


def write_days(directory: Path, num_days: int, rows_per_day: int, params: Params) -> Iterator[None]:
    """Write one more file of the log before each yield."""
    log = directory.parent / "log.tsv"
    with Progress("sample", None, None) as progress, redirect_stdout(StringIO()):
        write_sample(
            log,
            num_days * rows_per_day,
            num_days,
            params.sample.seed,
            load_schema(params.data.schema_name),
            progress,
        )
    directory.mkdir()
    with log.open("rb") as lines:
        for day in range(num_days):
            with (directory / f"day_{day}.tsv").open("wb") as file:
                file.writelines(islice(lines, rows_per_day))
            yield


def main() -> None:
    """Run the stages for each day and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, default=10, help="number of days")
    parser.add_argument("--rows", type=int, default=500_000, help="rows of a day")
    options = parser.parse_args()
    values = load_params().model_dump(by_alias=True)
    values["data"]["source"] = "clicks"
    values["features"]["fit_days"] = 1
    params = Params.model_validate(values)
    scratch = Path(tempfile.mkdtemp())
    try:
        print(f"{'days':>5} {'collect':>8} {'ingest':>8} {'features':>8} {'ingest + features':>18}")
        for day, _ in enumerate(
            write_days(scratch / "clicks", options.days, options.rows, params), start=1
        ):
            if day == 1:
                continue  # a single day leaves no rows to train on
            took = []
            for stage in (collect, ingest, build_features):
                started = time.perf_counter()
                with redirect_stdout(StringIO()):
                    stage(params, scratch)
                took.append(time.perf_counter() - started)
            print(
                f"{day:>5} "
                + " ".join(f"{seconds:7.2f}s" for seconds in took)
                + f" {took[1] + took[2]:17.2f}s",
                flush=True,
            )
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
