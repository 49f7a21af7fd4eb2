"""The CPU time of collect, ingest and features for one small log file, in two layouts.

    python benchmarks/small_files.py [--files 3000] [--rows 20]

`flat`: each file is a day. `folders`: the files are in ten folders, day=2026-01-01 and so on. The
last line is the time in which pyarrow writes the rows of one file to Parquet, and does no more:
ingest writes such a file for each log file, and features another one for each day.
"""

import argparse
import logging
import resource
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from common.config.params import Params, load_params
from common.progress import Progress
from features.collect.stage import collect
from features.dataset.stage import build_features
from features.ingest.stage import ingest
from features.sample.generate import write_sample
from features.schema.schema import load_schema

STAGES: dict[str, Callable[[Params, Path], None]] = {
    "collect": collect,
    "ingest": ingest,
    "features": build_features,
}
NUM_FOLDERS = 10


def write_files(folder: Path, num_files: int, rows: int, params: Params, layout: str) -> None:
    """Write the generated sample as many files of some rows."""
    log, schema = folder.parent / "log.tsv", load_schema(params.data.schema_name)
    with Progress("sample", None, None) as progress:
        write_sample(log, num_files * rows, NUM_FOLDERS, params.sample.seed, schema, progress)
    with log.open("rb") as lines:
        for k in range(num_files):
            day = 1 + k * NUM_FOLDERS // num_files
            target = folder / f"day=2026-01-{day:02}" if layout == "folders" else folder
            target.mkdir(parents=True, exist_ok=True)
            (target / f"part_{k:05}.tsv").write_bytes(b"".join(islice(lines, rows)))


def cpu_seconds() -> float:
    """Return the CPU time of all threads of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def write_bare(root: Path, num_files: int) -> None:
    """Let pyarrow write the rows of one file this number of times."""
    table = pq.read_table(next((root / "artifacts/parquet").rglob("part_00000.tsv.parquet")))
    for _ in range(num_files):
        pq.write_table(table, root / "bare.parquet", compression="lz4")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=3000, help="number of files")
    parser.add_argument("--rows", type=int, default=20, help="rows of a file")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # on a day of few rows, chance looks unusual
    values = load_params().model_dump(by_alias=True)
    values["data"]["source"] = "logs"
    params = Params.model_validate(values)
    print("| ms of CPU time a file | flat | folders |\n|---|---|---|", flush=True)
    times: dict[str, list[float]] = {}
    for layout in ("flat", "folders"):
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
            root = Path(folder)
            write_files(root / "logs", options.files, options.rows, params, layout)
            for name, stage in STAGES.items():
                start = cpu_seconds()
                stage(params, root)
                times.setdefault(name, []).append(cpu_seconds() - start)
            start = cpu_seconds()
            write_bare(root, options.files)
            times.setdefault("pyarrow alone", []).append(cpu_seconds() - start)
    for name, seconds in times.items():
        print(f"| {name} | {' | '.join(f'{1000 * s / options.files:.2f}' for s in seconds)} |")


if __name__ == "__main__":
    main()
