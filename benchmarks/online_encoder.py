"""The time to encode the rows of a request: the fast path of the online encoder and the batch path.

    python benchmarks/online_encoder.py [--log LOG] [--policy vocabulary] [--rounds 30]

The log is that of --log, of the schema `criteo`; else 100,000 rows of the sample log. In each round
each path encodes requests of 1, 16, 256 and 4,096 rows, as lines of text and as records of JSON,
several times after one another. Both paths give the same bytes, which is checked. The figures are
medians. On a busy machine compare the CPU times: the batch path waits for its threads.

The second table is the CPU time and the memory of the table of ids for a vocabulary of each size.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from common.config.params import load_params
from common.progress import Progress
from features.encode.feature_state import FeatureState
from features.encode.vocabulary import frequent_values
from features.ingest.readers.read_log import read_log
from features.online.batch_path import BatchPath
from features.online.encoded_rows import EncodedRows
from features.online.fast_path import FastPath
from features.sample.generate import write_sample
from features.schema.schema import Schema, load_schema
from features.value_counts import count_values

ROOT = Path(__file__).parents[1]
SIZES = (1, 16, 256, 4096)
NUM_SAMPLE_ROWS, MIN_COUNT = 100_000, 2
BATCH_CALLS = 3  # of one request in a round
FAST_CALLS = 20
VOCABULARY_SIZES = (1_000, 100_000, 1_000_000)
BUCKETS = {"vocabulary": 0, "hash": 10_000, "vocabulary_and_hash": 10_000}


def schema_with(policy: str) -> Schema:
    """Return the schema `criteo` with another policy for all columns."""
    values = load_schema("criteo").model_dump(by_alias=True)
    for group in values["columns"]:
        if group["kind"] == "categorical":
            group["policy"] = {"name": policy, "buckets": BUCKETS[policy]}
    return Schema.model_validate(values)


def write_log(path: Path, schema: Schema) -> None:
    """Write the sample log."""
    with Progress("sample", None, None) as progress:
        write_sample(
            path,
            NUM_SAMPLE_ROWS,
            7,
            load_params(ROOT / "params.yaml").sample.seed,
            schema,
            progress,
        )


def fit(log: Path, schema: Schema, policy: str) -> FeatureState:
    """Fit a state of the layout `frequency` to a log."""
    pieces = read_log(log, schema, labelled=True, short_rows="fill")
    rows = pl.concat([piece.rows for piece in pieces]).lazy()
    vocabularies = {
        name: frequent_values(count_values(rows, pl.col(name)), MIN_COUNT)
        for name in schema.categorical
    }
    if policy == "hash":
        vocabularies = {name: values.clear() for name, values in vocabularies.items()}
    return FeatureState(schema, "frequency", vocabularies, {})


def requests_of(lines: list[bytes], schema: Schema) -> tuple[bytes, list[dict[str, Any]]]:
    """Return labelled lines as the two kinds of requests: lines without labels, and records."""
    unlabelled = [line.partition(b"\t")[2] for line in lines]
    records = []
    for line in unlabelled:
        texts = zip(schema.log_columns(labelled=False), line.decode().split("\t"), strict=True)
        records.append(
            {
                name: (int(text) if name in schema.dense else text) if text else None
                for name, text in texts
            }
        )
    return b"\n".join([*unlabelled, b""]), records


def check_same(one: EncodedRows, other: EncodedRows) -> None:
    """Check that two results have the same bytes."""
    assert one.dense_GN.tobytes() == other.dense_GN.tobytes()
    assert one.ids_GF.tobytes() == other.ids_GF.tobytes()


def times_us(
    work: Callable[[Any], EncodedRows], request: Any, num_calls: int
) -> list[tuple[float, float]]:
    """Return the time and the CPU time of each of some calls, in microseconds."""
    times = []
    for _ in range(num_calls):
        started, cpu_started = time.perf_counter(), time.process_time()
        work(request)
        cpu_ended, ended = time.process_time(), time.perf_counter()
        times.append(((ended - started) * 1e6, (cpu_ended - cpu_started) * 1e6))
    return times


def compare(state: FeatureState, lines: list[bytes], num_rounds: int) -> None:
    """Print the median times of both paths by the number of rows."""
    fast, batch = FastPath(state), BatchPath(state, "fill")
    requests = {size: requests_of(lines[:size], state.schema) for size in SIZES}
    times: dict[tuple[int, str, str], list[tuple[float, float]]] = {}
    for number in range(num_rounds):
        for size, (body, records) in requests.items():
            for kind, request, of_fast, of_batch in (
                ("lines", body, fast.encode_lines, batch.encode_lines),
                ("records", records, fast.encode_records, batch.encode_records),
            ):
                if number == 0:
                    check_same(of_fast(request), of_batch(request))
                fast_times = times_us(of_fast, request, FAST_CALLS)
                times.setdefault((size, kind, "fast"), []).extend(fast_times)
                batch_times = times_us(of_batch, request, BATCH_CALLS)
                times.setdefault((size, kind, "batch"), []).extend(batch_times)
    print("| rows | kind | fast | batch | ratio | fast, CPU | batch, CPU | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        for kind in ("lines", "records"):
            cells = [f"{size:,}", kind]
            for clock in (0, 1):
                fast_us, batch_us = (
                    statistics.median(of_call[clock] for of_call in times[size, kind, path])
                    for path in ("fast", "batch")
                )
                cells += [f"{fast_us:,.0f} us", f"{batch_us:,.0f} us", f"{batch_us / fast_us:.1f}"]
            print(f"| {' | '.join(cells)} |")


def construct() -> None:
    """Print the time and the memory of tables of one vocabulary."""
    print("\n| values | hex32 | bytes a value | text | bytes a value |")
    print("|---|---|---|---|---|")
    for size in VOCABULARY_SIZES:
        numbers = random.Random(0).sample(range(2**32), size)
        cells = [f"{size:,}"]
        for values in (
            pl.Series(numbers, dtype=pl.UInt32),
            pl.Series([f"{number:08x}.example" for number in numbers]),
        ):
            schema = _schema_of_one("hex32" if values.dtype == pl.UInt32 else "string")
            state = FeatureState(schema, "frequency", {"value": values}, {})
            started = time.process_time()
            path = FastPath(state)
            seconds = time.process_time() - started
            cells += [f"{seconds:.3f} s", f"{path.ids.num_bytes / size:.1f}"]
        print(f"| {' | '.join(cells)} |")


def _schema_of_one(parse: str) -> Schema:
    columns = [
        {"kind": "label", "names": ["click"]},
        {"kind": "dense", "names": ["age"], "parse": "integer", "transform": "log1p"},
        {"kind": "categorical", "names": ["value"], "parse": parse, "policy": "vocabulary"},
    ]
    log_format = {"kind": "json_lines", "null_tokens": [""]}
    return Schema.model_validate({"format": log_format, "columns": columns})


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--policy", choices=BUCKETS, default="vocabulary")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    schema = schema_with(options.policy)
    with tempfile.TemporaryDirectory() as folder:
        log = options.log or Path(folder) / "log.tsv"
        if options.log is None:
            write_log(log, schema)
        state = fit(log, schema, options.policy)
        with log.open("rb") as file:
            lines = [line.rstrip(b"\n") for line, _ in zip(file, range(max(SIZES)), strict=False)]
    num_values = sum(map(len, state.vocabularies.values()))
    print(f"{num_values:,} values in {len(state.vocabularies)} vocabularies, {options.policy}\n")
    compare(state, lines, options.rounds)
    construct()


if __name__ == "__main__":
    main()
