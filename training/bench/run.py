"""`clickmill bench`: hit rates of caches of table rows, and the time of a training step, for ids of more or less locality.

runs/bench/hit_rate.csv    by ids, column and cache size: hit rate of an LRU cache of so many rows, exact
runs/bench/step_time.csv   by ids and size of the tables: milliseconds of a step, and of its look-ups and updates alone
runs/bench/bench.png       both, over bytes
"""

import time
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from common.config.params import Params
from common.files import replaced
from common.logs import get_logger
from features.encode.feature_state import FeatureState
from features.encode.stage import FEATURES
from training.bench.caches import system_caches
from training.bench.picture import write_picture
from training.bench.stack_distance import Profile, stack_distances
from training.bench.step_times import measure_steps
from training.bench.trace import Ids, random_ids, trace_ids
from training.stage import check_features

log = get_logger("bench")

BENCH = Path("runs/bench")
ALL = "all tables"  # as one cache sees them: row after row of the log, column after column


def bench(params: Params, root: Path, kind: Literal["random", "trace"], num_rows: int) -> None:
    """Uniform ids, and for "trace" the log's own and a trace with their locality beside them, on the tables of root/artifacts/features.

    num_rows: of the log's training rows, the first; all if they are fewer. Raises DataError when there are no features.
    """
    check_features(root / FEATURES)
    state = FeatureState.load(root / FEATURES / "state")
    random = np.random.default_rng(params.train.seed)
    ids: dict[str, Ids] = {"random": random_ids(num_rows, state.cardinalities, random)}
    if kind == "trace":
        ids["log"] = read_ids(
            root / FEATURES / "train", state.schema.categorical_features, num_rows
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


def read_ids(directory: Path, columns: list[str], num_rows: int) -> Ids:
    """The first rows of a folder of feature files, in the order of days: (R, F)."""
    return (
        pl.scan_parquet(sorted(directory.glob("*.parquet")))
        .select(columns)
        .head(num_rows)
        .collect()
        .to_numpy()
    )


def measure_hit_rates(
    ids: dict[str, Ids], state: FeatureState, more_sizes: list[int]
) -> pl.DataFrame:
    """ids, column, cache_rows, hit_rate: of each column by itself and of all tables behind one cache, which begin empty.

    Cache sizes are the powers of two up to all rows, and more_sizes.
    """
    started_s, num_accesses = time.perf_counter(), 0
    starts_F = np.concatenate([[0], np.cumsum(state.cardinalities)[:-1]])
    sizes = np.array(
        sorted({*more_sizes, *(1 << k for k in range(sum(state.cardinalities).bit_length() + 1))})
    )
    frames = []
    for name, ids_RF in ids.items():
        streams = {
            ALL: (ids_RF + starts_F).ravel(),
            **dict(zip(state.schema.categorical_features, ids_RF.T, strict=True)),
        }
        for column, rows_T in streams.items():
            rates = Profile.of(stack_distances(rows_T)).hit_rate(sizes)
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
