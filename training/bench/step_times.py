"""The time of a training step, by ids and by the size of the embedding tables.

Shapes: R rows, F categorical fields, B batch, N dense columns.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice

import numpy as np
import polars as pl
import torch

from common.config.params import Params
from features.encode.feature_state import FeatureState
from features.schema.schema import Schema
from training.bench.step import Step
from training.bench.trace import Ids
from training.distributed.device import pick_accelerator
from training.loop.batches import Rows
from training.loop.losses import make_loss
from training.models.factory import build_model, inputs_of
from training.models.mlp import set_precision

ROUNDS = 5
STEPS_PER_ROUND = 4
# The tables are cut to this number of rows, then to GROWTH times as many, up to all their rows.
SMALLEST_TABLE = 64
GROWTH = 4


def measure_steps(ids: dict[str, Ids], state: FeatureState, params: Params) -> pl.DataFrame:
    """Measure training steps with tables of several sizes, from a few rows to all rows.

    The ids are reduced modulo the size of the tables. Small tables fit into the caches of the
    processor, large ones do not. All combinations of ids and sizes take turns, so that a slow phase
    of the machine affects all of them.

    Args:
        ids: Name -> ids, (R, F).
        state: The feature state, which gives the sizes of the tables.
        params: The parameters of params.yaml.

    Returns:
        A table with the columns ids, table_rows (of all tables), step_ms (of a whole step) and
        tables_ms (of its embedding lookup and update alone). The times are medians of the rounds.
    """
    device, sync = _device(params)
    num_dense = len(state.schema.dense_features)
    cases = {}
    for max_rows in table_sizes(max(state.cardinalities)):
        sizes = [min(size, max_rows) for size in state.cardinalities]
        step = _make_step(sizes, state.schema, params, device, sync)
        for name, ids_RF in ids.items():
            batches = _batches(ids_RF % np.array(sizes), num_dense, params, device)
            cases[name, sum(sizes)] = (step, batches)
    times: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in cases}
    for number in range(ROUNDS + 1):
        for case, (step, batches) in cases.items():
            measured = _measure_round(step, list(islice(batches, STEPS_PER_ROUND)))
            if number > 0:  # the first round warms up
                times[case].append(measured)
    rows = []
    for (name, table_rows), measured_rounds in times.items():
        step_ms, tables_ms = zip(*measured_rounds, strict=True)
        rows.append(
            {
                "ids": name,
                "table_rows": table_rows,
                "step_ms": statistics.median(step_ms),
                "tables_ms": statistics.median(tables_ms),
            }
        )
    return pl.DataFrame(rows)


def table_sizes(largest: int) -> list[int]:
    """Return the numbers of rows that tables are cut to, in ascending order up to the largest."""
    sizes = [min(SMALLEST_TABLE, largest)]
    while sizes[-1] < largest:
        sizes.append(min(GROWTH * sizes[-1], largest))
    return sizes


def _device(params: Params) -> tuple[str, Callable[[], None]]:
    """Return the device, and a function that waits until it has finished."""
    if pick_accelerator(params.train) == "gpu":
        return "cuda", torch.cuda.synchronize
    return "cpu", lambda: None


def _make_step(
    sizes: list[int], schema: Schema, params: Params, device: str, sync: Callable[[], None]
) -> Step:
    generator = torch.Generator().manual_seed(params.train.seed)
    num_dense = len(schema.dense_features)
    model = build_model(params.model, sizes, num_dense, generator, inputs=inputs_of(schema))
    set_precision(model, params.train.precision)
    return Step(model.to(device), make_loss(params.model.loss), params.train, sync)


def _measure_round(step: Step, batches: list[Rows]) -> tuple[float, float]:
    """Return the milliseconds of a step, and of its embedding lookup and update."""
    started_s, tables_s = time.perf_counter(), step.tables_s
    for batch in batches:
        step(batch)
    step_s, tables_s = time.perf_counter() - started_s, step.tables_s - tables_s
    return 1000 * step_s / len(batches), 1000 * tables_s / len(batches)


def _batches(ids_RF: Ids, num_dense: int, params: Params, device: str) -> Iterator[Rows]:
    """Yield the rows in batches, in an endless loop.

    Dense values and labels are random and the same in each batch.
    """
    B = min(params.train.batch_size, len(ids_RF))
    random = np.random.default_rng(params.train.seed)
    dense_BN = torch.from_numpy(random.normal(size=(B, num_dense)).astype(np.float32)).to(device)
    labels_B = torch.from_numpy(random.integers(0, 2, B).astype(np.float32)).to(device)
    ids = torch.from_numpy(ids_RF.astype(np.int32)).to(device)
    return (
        Rows(dense_BN, ids[start : start + B], labels_B)
        for start in cycle(range(0, len(ids) - B + 1, B))
    )
