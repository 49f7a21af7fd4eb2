"""Raw text to training-ready Parquet, against the time Polars needs merely to parse that text; interleaved, as machines are noisy.

    python benchmarks/ingest.py [--rows 1000000] [--rounds 5] [--reference PATH]

Prints, per round and as medians: seconds of the floor (scan_csv, every column summed, streaming engine), of ingest, of features, and the
ratio (ingest + features) / floor; then peak memory and bytes on disk. With a checkout of facebookresearch/dlrm at PATH, its
preprocessing runs on the same file in each round too, and its seconds over ours are a second ratio.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import polars as pl

from features.build import FEATURES, build_features
from features.collect import RAW, SAMPLE_LOG, collect
from features.files import remove
from features.ingest import PARQUET, ingest
from features.params import Params, load_params
from features.schema import Schema, load_schema


def parse_only(log: Path, schema: Schema) -> None:
    """The floor: every field parsed, nothing kept."""
    types: dict[str, type[pl.DataType]] = {schema.label: pl.Int64, **dict.fromkeys(schema.dense, pl.Int64)}
    columns = {name: types.get(name, pl.String) for name in schema.names}
    rows = pl.scan_csv(log, has_header=False, separator=schema.format.separator, schema=columns, quote_char=None)
    sums = [pl.col(name).sum() if name in types else pl.col(name).str.len_bytes().sum() for name in schema.names]
    rows.select(sums).collect(engine="streaming")


def ingest_anew(params: Params, root: Path) -> None:
    """Known log files would not be read again."""
    remove(root / PARQUET)
    ingest(params, root)


def preprocess_by(reference: Path, log: Path) -> None:
    """The reference's preprocessing of the same rows; without --max-ind-range it dies on NumPy 2."""
    with tempfile.TemporaryDirectory(dir=log.parent.parent) as scratch:
        copy = Path(scratch) / "train.txt"
        copy.hardlink_to(log)
        command = [sys.executable, str(reference / "data_utils.py"), "--max-ind-range", "10000000", "--raw-data-file", str(copy)]
        subprocess.run([*command, "--processed-data-file", str(Path(scratch) / "out.npz")], check=True, stdout=subprocess.DEVNULL)


def seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    with redirect_stdout(StringIO()):
        work()
    return time.perf_counter() - started


def row(took: dict[str, float]) -> str:
    *jobs, floor_ratio, reference_ratio = took.values()
    return " ".join(f"{job:9.2f}s" for job in jobs) + f"  {floor_ratio:10.2f}  {reference_ratio:14.1f}"


def megabytes(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--reference", type=Path)
    options = arguments.parse_args()
    values = load_params().model_dump(by_alias=True)
    values["data"]["source"], values["sample"]["num_rows"] = "sample", options.rows
    params = Params.model_validate(values)
    schema = load_schema(params.data.schema_name)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        print(f"writing {options.rows:,} sample rows: {seconds(lambda: collect(params, root)):.1f} s")
        work = {
            "floor": lambda: parse_only(root / RAW / SAMPLE_LOG, schema),
            "ingest": lambda: ingest_anew(params, root),
            "features": lambda: build_features(params, root),
        }
        if options.reference:
            work["reference"] = lambda: preprocess_by(options.reference, root / RAW / SAMPLE_LOG)
        rounds: list[dict[str, float]] = []
        print(" round " + " ".join(f"{name:>10}" for name in work) + "  ours/floor  reference/ours")
        for number in range(1, options.rounds + 1):
            took = {name: seconds(job) for name, job in work.items()}
            ours = took["ingest"] + took["features"]
            took |= {"ours/floor": ours / took["floor"], "reference/ours": took.get("reference", float("nan")) / ours}
            rounds.append(took)
            print(f"{number:>6} " + row(took))
        medians = {name: statistics.median(took[name] for took in rounds) for name in rounds[0]}
        print("median " + row(medians))
        print(f"rows/s, raw text to training-ready: {options.rows / (medians['ingest'] + medians['features']):,.0f}")
        print(f"peak resident memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10:,} MiB")
        print("bytes on disk: " + ", ".join(f"{place.name} {megabytes(root / place):,.0f} MB" for place in (RAW, PARQUET, FEATURES)))


if __name__ == "__main__":
    main()
