"""The command `clickmill bench`: cache hit rates and step times for ids of more or less locality.

It writes

    runs/bench/hit_rate.csv    the exact hit rate of an LRU cache of table rows, by ids, column and
                               cache size
    runs/bench/step_time.csv   milliseconds of a training step, and of its embedding lookup and
                               update alone, by ids and size of the tables
    runs/bench/bench.png       both, over sizes in bytes
"""

import time
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from common.artifact import Artifact
from common.config.params import Params
from common.files import DataError, replaced
from common.layout import FEATURES
from common.logs import get_logger
from common.parquet import scan_parquet
from features.encode.feature_state import FeatureState
from features.schema.check_params import check_columns
from features.schema.schema import Schema
from training.bench.caches import system_caches
from training.bench.picture import write_picture
from training.bench.stack_distance import DistanceHistogram, stack_distances
from training.bench.step_times import measure_steps
from training.bench.trace import Ids, random_ids, trace_ids
from training.stage import check_features

log = get_logger("bench")

BENCH = Path("runs/bench")
ALL = "all tables"  # one cache for the accesses of all columns, in the order of the log


def bench(params: Params, root: Path, kind: Literal["random", "trace"], num_rows: int) -> None:
    """Measure hit rates and step times on the embedding tables of root/artifacts/features.

    Args:
        params: The parameters of params.yaml.
        root: The project folder.
        kind: "random" measures uniform ids. "trace" also measures the ids of the log, and a trace
            with their locality.
        num_rows: Number of rows. The log's ids are those of its first training rows, of all if
            there are fewer.

    Raises:
        DataError: There are no features, or one of them has lists or shares a table.
        ConfigError: The parameters name columns that the features do not have.
    """
    features = Artifact.open(root / FEATURES)
    check_features(features)
    state = FeatureState.load(root / FEATURES / "state")
    check_single_values(state.schema)
    check_columns(params, state.schema)
    random = np.random.default_rng(params.train.seed)
    ids: dict[str, Ids] = {"random": random_ids(num_rows, state.cardinalities, random)}
    if kind == "trace":
        ids["log"] = read_ids(
            features.paths_in("train"), state.schema.categorical_features, num_rows
        )
        ids["trace"] = trace_ids(ids["log"], random)
    row_bytes = 4 * params.model.embedding_dim
    caches = system_caches()
    hit_rates = measure_hit_rates(ids, state, [size // row_bytes for size in caches.values()])
    step_times = measure_steps(ids, state, params)
    _print_tables(hit_rates.filter(pl.col("column") == ALL), step_times, caches, row_bytes)
    with replaced(root / BENCH) as scratch:
        scratch.mkdir()
        hit_rates.write_csv(scratch / "hit_rate.csv")
        step_times.write_csv(scratch / "step_time.csv")
        write_picture(
            scratch / "bench.png",
            hit_rates.filter(pl.col("column") == ALL),
            step_times,
            caches,
            row_bytes,
        )
    print(f"\n{root / BENCH}: hit_rate.csv, step_time.csv, bench.png")


def check_single_values(schema: Schema) -> None:
    """Check that each feature has one value and a table of its own, as the traces need it.

    Raises:
        DataError: A feature has lists, or shares a table.
    """
    names = [feature.name for feature in schema.list_features]
    names += [name for of_table in schema.tables.values() if len(of_table) > 1 for name in of_table]
    if names:
        raise DataError(
            f"clickmill bench: {names[0]} has lists of values or shares an embedding table, and"
            " traces need one value and one table for each feature; to measure lists, take"
            " --preset mlperf-dcnv2"
        )


def read_ids(files: list[Path], columns: list[str], num_rows: int) -> Ids:
    """Read the ids of the first rows of a split.

    Args:
        files: The split's feature files, in the order of the days.
        columns: The categorical features.
        num_rows: The largest number of rows.

    Returns:
        Ids in the order of the days, (R, F).
    """
    return (
        pl.concat([scan_parquet(file) for file in files])
        .select(columns)
        .head(num_rows)
        .collect()
        .to_numpy()
    )


def measure_hit_rates(
    ids: dict[str, Ids], state: FeatureState, more_sizes: list[int]
) -> pl.DataFrame:
    """Compute the hit rates of LRU caches that are empty at first.

    Args:
        ids: Name -> ids, (R, F).
        state: The feature state, which gives the columns and the sizes of their tables.
        more_sizes: Sizes of caches in rows, in addition to the powers of two up to all table rows.

    Returns:
        A table with the columns ids, column, cache_rows and hit_rate. Each column has caches of its
        own, and the column ALL is one cache for the rows of all tables.
    """
    started_s = time.perf_counter()
    num_accesses = 0
    starts_F = np.concatenate([[0], np.cumsum(state.cardinalities)[:-1]])
    num_powers = sum(state.cardinalities).bit_length() + 1
    sizes = np.array(sorted({*more_sizes, *(1 << k for k in range(num_powers))}))
    frames = []
    for name, ids_RF in ids.items():
        streams = {
            ALL: (ids_RF + starts_F).ravel(),
            **dict(zip(state.schema.categorical_features, ids_RF.T, strict=True)),
        }
        for column, rows_T in streams.items():
            rates = DistanceHistogram.of(stack_distances(rows_T)).hit_rate(sizes)
            frames.append(
                pl.DataFrame(
                    {"ids": name, "column": column, "cache_rows": sizes, "hit_rate": rates}
                )
            )
            num_accesses += len(rows_T)
    rate = num_accesses / (time.perf_counter() - started_s)
    log.info(f"{num_accesses:,} stack distances, {rate:,.0f} accesses/s")
    return pl.concat(frames)


def _print_tables(
    hit_rates: pl.DataFrame, step_times: pl.DataFrame, caches: dict[str, int], row_bytes: int
) -> None:
    names = hit_rates["ids"].unique(maintain_order=True).to_list()
    print(
        f"\nLRU cache of table rows, {row_bytes} bytes each; hit rate"
        + "".join(f"{name:>12}" for name in names)
    )
    titles = {size // row_bytes: f" ({name})" for name, size in caches.items()}
    for (rows,), part in hit_rates.group_by("cache_rows", maintain_order=True):
        rates = dict(part.select("ids", "hit_rate").iter_rows())
        print(
            f"{rows:>25,} rows{titles.get(rows, ''):<15}"
            + "".join(f"{rates[name]:>12.1%}" for name in names)
        )
    print(
        f"\n{'tables in all':>30}; ms of a step (of which tables)"
        + "".join(f"{name:>16}" for name in names)
    )
    for (rows,), part in step_times.group_by("table_rows", maintain_order=True):
        times = {
            name: f"{step_ms:.2f} ({tables_ms:.2f})"
            for name, step_ms, tables_ms in part.select("ids", "step_ms", "tables_ms").iter_rows()
        }
        print(
            f"{rows:>25,} rows {rows * row_bytes / 2**20:>12,.1f} MiB"
            + "".join(f"{times[name]:>16}" for name in names)
        )
