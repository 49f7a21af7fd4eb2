"""The time from raw logs to Parquet, against other tools.

    python benchmarks/ingest.py [--rows 1000000] [--rounds 5] [--peers] [--reference PATH]
                                [--logs text parquet lists json-lists]

In each round every contender runs once, in its own process: the contenders are interleaved because
the speed of a machine varies. The tables have the time without imports and the peak memory.

From the text of the sample log to features:

    floor      Polars parses the text: scan_csv, every column summed, streaming engine
    ours       the stages ingest and features
    gz         the same for the gzipped log
    duckdb, pandas (--peers)
               the same features of the same log, row for row: vocabularies of the training rows,
               ids, log1p, Parquet
    reference  preprocessing by a checkout of facebookresearch/dlrm at PATH; the time includes
               imports, because it is a script

From other logs (see speed/typed_logs.py) to typed columns as Parquet, in CPU and in wall seconds:

    ours       the stage ingest
    polars, duckdb
               the same typed rows in the same order, written as Parquet with lz4 (checked)
"""

import argparse
import gzip
import json
import resource
import shutil
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
from peers import typed_copies, with_duckdb, with_pandas
from speed import typed_logs

from common.config.params import Params, load_params
from common.files import read_json, remove
from common.layout import FEATURES, PARQUET, RAW
from features.collect import stage as collect_stage
from features.collect.stage import SAMPLE_LOG, collect
from features.dataset.stage import build_features
from features.encode.split import SPLITS
from features.ingest.stage import ingest
from features.schema import schema as schemas
from features.schema.schema import Schema, load_schema

PEERS = {"duckdb": with_duckdb, "pandas": with_pandas}
OURS = ("ours", "gz")
COPIES = {"polars": typed_copies.with_polars, "duckdb": typed_copies.with_duckdb}


def make_params(source: str, num_rows: int, schema: str = "criteo") -> Params:
    """Return the shipped parameters, with one vocabulary of all training rows, as the peers do."""
    values = load_params().model_dump(by_alias=True)
    values["data"] |= {"source": source, "schema": schema}
    values["sample"]["num_rows"] = num_rows
    values["features"]["fit_days"] = values["data"]["days"]
    return Params.model_validate(values)


def parse_only(log: Path, schema: Schema) -> None:
    """Parse every field and keep nothing: the floor."""
    types: dict[str, type[pl.DataType]] = {
        schema.label: pl.Int64,
        **dict.fromkeys(schema.dense, pl.Int64),
    }
    columns = {name: types.get(name, pl.String) for name in schema.names}
    rows = pl.scan_csv(
        log, has_header=False, separator=schema.format.separator, schema=columns, quote_char=None
    )
    sums = [
        pl.col(name).sum() if name in types else pl.col(name).str.len_bytes().sum()
        for name in schema.names
    ]
    rows.select(sums).collect(engine="streaming")


def preprocess_by(reference: Path, log: Path) -> None:
    """Run the reference's preprocessing; without --max-ind-range it fails with NumPy 2."""
    with tempfile.TemporaryDirectory(dir=log.parent.parent) as scratch:
        copy = Path(scratch) / "train.txt"
        copy.hardlink_to(log)
        command = [
            sys.executable,
            str(reference / "data_utils.py"),
            "--max-ind-range",
            "10000000",
            "--raw-data-file",
            str(copy),
        ]
        subprocess.run(
            [*command, "--processed-data-file", str(Path(scratch) / "out.npz")],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def parts(contender: str, root: Path, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Return the functions that a contender runs, by the name of the part."""
    log = root / RAW / SAMPLE_LOG
    if ":" in contender:
        source, _, name = contender.partition(":")
        return {"all": typed_work(source, name, root, options.rows)}
    params = make_params("sample", options.rows)
    schema = load_schema(params.data.schema_name)
    if contender == "logs":
        return {"all": lambda: make_logs(root, options.rows)}
    if contender in OURS:
        return {
            "ingest": lambda: ingest(params, root),
            "features": lambda: build_features(params, root),
        }
    if contender in PEERS:
        data = read_json(root / FEATURES / "data.json")
        target, num_train = root / f"{contender}.parquet", data["splits"]["train"]["num_rows"]
        return {
            "all": lambda: PEERS[contender].preprocess(
                log, target, schema, num_train, params.features.min_count
            )
        }
    work = {
        "floor": lambda: parse_only(log, schema),
        "reference": lambda: preprocess_by(options.reference, log),
    }
    return {"all": work[contender]}


def typed_work(source: str, contender: str, root: Path, num_rows: int) -> Callable[[], None]:
    """Return the function that makes typed columns of a log that is no text, or the log itself."""
    log = root / f"log{typed_logs.ending_of(source)}"
    schemas.SCHEMAS = collect_stage.SCHEMAS = root  # the benchmark's schemas are not those of users
    params = make_params(str(log), num_rows, schema=source)
    if contender == "log":
        return lambda: make_typed_log(source, log, params, root)
    if contender == "ours":
        return lambda: ingest(params, root)
    target = root / f"{contender}.parquet"
    return lambda: COPIES[contender](log, target, load_schema(source))


def make_typed_log(source: str, log: Path, params: Params, root: Path) -> None:
    """Write a log that is no text, and collect it."""
    typed_logs.write_log(source, root.parent / RAW / SAMPLE_LOG, params.sample.num_rows, log)
    collect(params, root)


def run_here(contender: str, root: Path, options: argparse.Namespace) -> None:
    """Run a contender here and print the seconds of each part and the peak memory, as JSON."""
    took = {}
    works = parts(contender, root, options)
    cpu_before = time.process_time()
    for name, work in works.items():
        started = time.perf_counter()
        with redirect_stdout(StringIO()):
            work()
        took[name] = time.perf_counter() - started
    cpu = time.process_time() - cpu_before
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    figures = {"parts": took, "seconds": sum(took.values()), "cpu": cpu, "peak_mib": peak >> 10}
    print(json.dumps(figures))


def run(contender: str, root: Path) -> dict:
    """Run a contender in its own process, after removing the outputs of an earlier run."""
    if contender.rpartition(":")[2] in OURS:
        remove(root / PARQUET)
        remove(root / FEATURES)
    command = [sys.executable, *sys.argv, "--contender", contender, "--root", str(root)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def make_logs(root: Path, num_rows: int) -> None:
    """Write the sample log, and a gzipped copy in root/gz."""
    collect(make_params("sample", num_rows), root)
    with (
        (root / RAW / SAMPLE_LOG).open("rb") as text,
        gzip.open(root / f"{SAMPLE_LOG}.gz", "wb", 6) as file,
    ):
        shutil.copyfileobj(text, file, 1 << 20)
    collect(make_params(str(root / f"{SAMPLE_LOG}.gz"), num_rows), root / "gz")


def check_equal(root: Path) -> None:
    """Check that the peers made the same ids, and logarithms that differ only by rounding."""
    files = [
        path for split in SPLITS for path in sorted((root / FEATURES / split).glob("*.parquet"))
    ]
    ours = pl.concat([pl.read_parquet(path) for path in files])
    for name in PEERS:
        theirs = pl.read_parquet(root / f"{name}.parquet").select(ours.columns)
        dense = [column for column, dtype in ours.schema.items() if dtype == pl.Float32]
        far = max((ours[column] - theirs[column]).abs().max() for column in dense)
        assert theirs.drop(dense).equals(ours.drop(dense)), f"{name} made other ids"
        assert far < 1e-5, f"{name} made other logarithms"


def compare_typed(source: str, text_root: Path, options: argparse.Namespace) -> None:
    """Measure all contenders on a log that is no text, and print their table."""
    root = text_root / source
    root.mkdir()
    typed_logs.write_schema(source, root)
    run(f"{source}:log", root)  # in its own process, as in main
    log = root / f"log{typed_logs.ending_of(source)}"
    names = ["ours", *COPIES]
    rounds: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            rounds[name].append(run(f"{source}:{name}", root))
    (shard,) = (root / PARQUET).glob("log*.parquet")
    ours = pl.read_parquet(shard)
    for name in COPIES:
        assert pl.read_parquet(root / f"{name}.parquet").equals(ours), f"{name} made other rows"
    sizes = [f"{path.stat().st_size / 1e6:,.0f} MB" for path in (log, shard)]
    print(f"\n{source}: log {sizes[0]}, shard {sizes[1]}")
    print("round        " + " ".join(f"{name:>16}" for name in names))
    for number, took in enumerate(zip(*rounds.values(), strict=True), 1):
        print(f"{number:>5}        " + " ".join(map(_cpu_and_wall, took)))
    cpu = {name: statistics.median(one["cpu"] for one in took) for name, took in rounds.items()}
    print("median CPU   " + " ".join(f"{value:15.2f}s" for value in cpu.values()))
    print("x ours       " + " ".join(f"{value / cpu['ours']:16.2f}" for value in cpu.values()))
    peaks = [max(one["peak_mib"] for one in took) for took in rounds.values()]
    print("peak MiB     " + " ".join(f"{peak:16,}" for peak in peaks), flush=True)


def _cpu_and_wall(took: dict) -> str:
    return f"{took['cpu']:7.2f}s ({took['seconds']:5.2f}s)"


def megabytes(directory: Path) -> float:
    """Return the size of all files below a directory, in MB."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6


def compare_text(root: Path, options: argparse.Namespace) -> None:
    """Measure all contenders on the sample log, and print their tables."""
    names = ["floor", *OURS]
    if options.peers:
        names += PEERS
    if options.reference:
        names.append("reference")
    roots = {name: root / "gz" if name == "gz" else root for name in names}
    rounds: dict[str, list[dict]] = {name: [] for name in roots}
    print("round  " + " ".join(f"{name:>10}" for name in roots))
    for number in range(1, options.rounds + 1):
        for name, place in roots.items():
            rounds[name].append(run(name, place))
        print(
            f"{number:>5}  " + " ".join(f"{took[-1]['seconds']:9.2f}s" for took in rounds.values()),
            flush=True,
        )
    if options.peers:
        check_equal(root)
    seconds = {
        name: statistics.median(one["seconds"] for one in took) for name, took in rounds.items()
    }
    print("median " + " ".join(f"{value:9.2f}s" for value in seconds.values()))
    print("x ours " + " ".join(f"{value / seconds['ours']:10.2f}" for value in seconds.values()))
    print(
        f"ours takes {seconds['ours'] / seconds['floor']:.2f} times as long as the floor;"
        f" {options.rows / seconds['ours']:,.0f} rows/s"
    )
    for name in OURS:
        part = {
            part: statistics.median(one["parts"][part] for one in rounds[name])
            for part in rounds[name][0]["parts"]
        }
        print(f"{name}: " + ", ".join(f"{part} {value:.2f} s" for part, value in part.items()))
    print(
        "peak memory, MiB: "
        + ", ".join(
            f"{name} {max(one['peak_mib'] for one in took):,}" for name, took in rounds.items()
        )
    )
    places = {
        "text": root / RAW,
        "gz": roots["gz"] / RAW,
        "parquet": root / PARQUET,
        "features": root / FEATURES,
    }
    print(
        "on disk: "
        + ", ".join(f"{name} {megabytes(place):,.0f} MB" for name, place in places.items())
    )


def main() -> None:
    """Measure all contenders and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the log")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions; the median counts")
    parser.add_argument(
        "--logs",
        nargs="+",
        default=["text", *typed_logs.SOURCES],
        choices=["text", *typed_logs.SOURCES],
        help="the logs to measure",
    )
    parser.add_argument("--peers", action="store_true", help="run DuckDB and pandas too")
    parser.add_argument("--reference", type=Path, help="a checkout of facebookresearch/dlrm")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        return run_here(options.contender, options.root, options)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        # in its own process: this process's peak memory would count for every child
        run("logs", root)
        for log in options.logs:
            if log == "text":
                compare_text(root, options)
            else:
                compare_typed(log, root, options)
    return None


if __name__ == "__main__":
    main()
