"""How long a training step takes, by ids and by the size of the tables. Shapes: R rows, F categorical fields, B batch, N dense columns."""

import statistics
import time
from collections.abc import Iterator
from itertools import cycle, islice

import numpy as np
import polars as pl
import torch

from common.config.params import Params
from features.encode.feature_state import FeatureState
from training.bench.step import Step
from training.bench.trace import Ids
from training.distributed.device import pick_accelerator
from training.loop.batches import Rows
from training.loop.losses import make_loss
from training.models.factory import build_model
from training.models.mlp import set_precision

ROUNDS = 5
WINDOW_STEPS = 4
SMALLEST_TABLE = (
    64  # rows; each size allows four times as many as the one before, the last as many as there are
)
GROWTH = 4


def measure_steps(ids: dict[str, Ids], state: FeatureState, params: Params) -> pl.DataFrame:
    """ids, table_rows (of all tables), step_ms, tables_ms (look-ups and updates alone): medians of interleaved rounds.

    The tables are cut to ever more rows, and the ids folded into them: what a step touches is then in the caches, or is not.
    """
    device, sync = (
        ("cuda", torch.cuda.synchronize)
        if pick_accelerator(params.train) == "gpu"
        else ("cpu", lambda: None)
    )
    windows: dict[tuple[str, int], list[tuple[float, float]]] = {}
    contenders = {}
    for cap in table_caps(max(state.cardinalities)):
        sizes = [min(size, cap) for size in state.cardinalities]
        model = build_model(
            params.model,
            sizes,
            len(state.schema.dense_features),
            torch.Generator().manual_seed(params.train.seed),
        )
        set_precision(model, params.train.precision)
        step = Step(model.to(device), make_loss(params.model.loss), params.train, sync)
        for name, ids_RF in ids.items():
            contenders[name, sum(sizes)] = (
                step,
                _batches(
                    ids_RF % np.array(sizes), len(state.schema.dense_features), params, device
                ),
            )
    for number in range(ROUNDS + 1):
        for key, (step, batches) in contenders.items():
            taken = _window(step, list(islice(batches, WINDOW_STEPS)))
            if number:  # the first warms up
                windows.setdefault(key, []).append(taken)
    return pl.DataFrame(
        [
            {
                "ids": name,
                "table_rows": rows,
                "step_ms": statistics.median(step),
                "tables_ms": statistics.median(tables),
            }
            for (name, rows), taken in windows.items()
            for step, tables in [zip(*taken, strict=True)]
        ]
    )


def table_caps(largest: int) -> list[int]:
    """Rows that a table may have, size by size; the last cuts none."""
    caps = [min(SMALLEST_TABLE, largest)]
    while caps[-1] < largest:
        caps.append(min(GROWTH * caps[-1], largest))
    return caps


def _window(step: Step, batches: list[Rows]) -> tuple[float, float]:
    """Milliseconds of a step, and of its tables' part."""
    started_s, tables_s = time.perf_counter(), step.tables_s
    for batch in batches:
        step(batch)
    return 1000 * (time.perf_counter() - started_s) / len(batches), 1000 * (
        step.tables_s - tables_s
    ) / len(batches)


def _batches(ids_RF: Ids, num_dense: int, params: Params, device: str) -> Iterator[Rows]:
    """The rows' batches, again and again; dense values and labels are the same noise in each."""
    B = min(params.train.batch_size, len(ids_RF))
    random = np.random.default_rng(params.train.seed)
    dense_BN = torch.from_numpy(random.normal(size=(B, num_dense)).astype(np.float32)).to(device)
    labels_B = torch.from_numpy(random.integers(0, 2, B).astype(np.float32)).to(device)
    ids = torch.from_numpy(ids_RF.astype(np.int32)).to(device)
    return (
        Rows(dense_BN, ids[start : start + B], labels_B)
        for start in cycle(range(0, len(ids) - B + 1, B))
    )
