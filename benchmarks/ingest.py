"""Raw text to training-ready Parquet, against the time Polars needs merely to parse that text; interleaved, as machines are noisy.

    python benchmarks/ingest.py [--rows 1000000] [--rounds 5]

Prints, per round and as medians: seconds of the floor (scan_csv, every column summed, streaming engine), of ingest, of features, and the
ratio (ingest + features) / floor; then peak memory and bytes on disk.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import polars as pl

from features.build import FEATURES, build_features
from features.collect import RAW, SAMPLE_LOG, collect
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


def seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    with redirect_stdout(StringIO()):
        work()
    return time.perf_counter() - started


def megabytes(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--rounds", type=int, default=5)
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
            "ingest": lambda: ingest(params, root),
            "features": lambda: build_features(params, root),
        }
        rounds: list[dict[str, float]] = []
        print(f"{'round':>6} {'floor':>8} {'ingest':>8} {'features':>8}  ratio")
        for number in range(1, options.rounds + 1):
            took = {name: seconds(job) for name, job in work.items()}
            took["ratio"] = (took["ingest"] + took["features"]) / took["floor"]
            rounds.append(took)
            print(f"{number:>6} " + " ".join(f"{took[name]:7.2f}s" for name in work) + f"  {took['ratio']:.2f}")
        medians = {name: statistics.median(took[name] for took in rounds) for name in rounds[0]}
        print("median " + " ".join(f"{medians[name]:7.2f}s" for name in work) + f"  {medians['ratio']:.2f}")
        print(f"rows/s, raw text to training-ready: {options.rows / (medians['ingest'] + medians['features']):,.0f}")
        print(f"peak resident memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10:,} MiB")
        print("bytes on disk: " + ", ".join(f"{place.name} {megabytes(root / place):,.0f} MB" for place in (RAW, PARQUET, FEATURES)))


if __name__ == "__main__":
    main()
