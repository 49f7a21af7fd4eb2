"""Presets of `clickmill bench`: the published architecture of a benchmark, on generated rows.

Shapes: B batch, N dense columns, F categorical features.
"""

import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, model_validator

from common.config.base import Positive, Strict
from common.config.loading import ConfigError, check, read_yaml
from common.config.model import Model
from common.config.params import DenseOptimizer, EmbeddingOptimizer, Train
from common.logs import get_logger
from training.bench.step import Step
from training.distributed.device import pick_accelerator
from training.loop.batches import Rows
from training.loop.losses import make_loss
from training.models.bags import Bag
from training.models.factory import build_model
from training.models.mlp import set_precision
from training.models.reads import CategoricalInputs

log = get_logger("bench")

PRESETS = Path(__file__).parent / "presets"
ROUNDS = 5
BATCHES = 4  # different ones, which the rounds use in turn


class BenchPreset(Strict):
    """The contents of a file of training/bench/presets.

    Attributes:
        model: The section `model` of params.yaml.
        dense_optimizer: The optimizer of the dense layers.
        embedding_optimizer: The optimizer of the embedding tables.
        batch_size: Rows of a batch.
        num_dense: N.
        max_table_rows: Larger tables are cut to this number of rows.
        cardinalities: Number of ids of each categorical feature, (F,).
        list_lengths: Number of values of each categorical feature in a row, (F,). Lists are summed;
            a feature with 1 has one value.
    """

    model: Model
    dense_optimizer: DenseOptimizer
    embedding_optimizer: EmbeddingOptimizer
    batch_size: Positive
    num_dense: Positive
    max_table_rows: Positive
    cardinalities: Annotated[list[Positive], Field(min_length=1)]
    list_lengths: list[Positive]

    @model_validator(mode="after")
    def _has_a_length_for_each_feature(self) -> "BenchPreset":
        if len(self.list_lengths) != len(self.cardinalities):
            raise ValueError(
                f"{len(self.list_lengths)} list_lengths found, {len(self.cardinalities)} expected:"
                " one for each of the cardinalities"
            )
        return self

    @property
    def inputs(self) -> CategoricalInputs:
        """The tables and lists of the features."""
        poolings = ["sum" if length > 1 else None for length in self.list_lengths]
        return CategoricalInputs(list(range(len(poolings))), poolings)


def load_preset(name: str) -> BenchPreset:
    """Read training/bench/presets/NAME.yaml.

    Raises:
        ConfigError: There is no such preset.
    """
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in names:
        raise ConfigError(f"--preset {name!r}: no such preset; the presets are {', '.join(names)}")
    path = PRESETS / f"{name}.yaml"
    return check(BenchPreset, read_yaml(path), path)


def draw_rows(
    preset: BenchPreset, cardinalities: list[int], batch_size: int, generator: torch.Generator
) -> Rows:
    """Draw the rows of a batch: uniform ids, normal dense values, one click in four."""
    singles, bags = [], []
    for num_ids, length in zip(cardinalities, preset.list_lengths, strict=True):
        values = torch.randint(num_ids, (batch_size * length,), generator=generator).int()
        if length == 1:
            singles.append(values)
        else:
            bags.append(Bag(values, torch.arange(batch_size + 1) * length, None))
    return Rows(
        torch.randn(batch_size, preset.num_dense, generator=generator),
        torch.stack(singles, dim=1) if singles else torch.empty(batch_size, 0, dtype=torch.int32),
        (torch.rand(batch_size, generator=generator) < 1 / 4).float(),
        tuple(bags),
    )


def bench_preset(
    name: str, train: Train, batch_size: int | None, max_table_rows: int | None
) -> None:
    """Measure the training steps of a preset and print them.

    Args:
        name: Name of the preset.
        train: The section `train` of params.yaml, for the device, the precision and the seed.
        batch_size: Rows of a batch; None takes the preset's.
        max_table_rows: Larger tables are cut to this number of rows; None takes the preset's.
    """
    preset = load_preset(name)
    batch_size = batch_size or preset.batch_size
    max_table_rows = max_table_rows or preset.max_table_rows
    cardinalities = [min(num_ids, max_table_rows) for num_ids in preset.cardinalities]
    is_gpu = pick_accelerator(train) == "gpu"
    device = torch.device("cuda" if is_gpu else "cpu")
    generator = torch.Generator().manual_seed(train.seed)
    model = build_model(
        preset.model, cardinalities, preset.num_dense, generator, inputs=preset.inputs
    )
    set_precision(model, train.precision)
    optimizers = {
        "dense_optimizer": preset.dense_optimizer,
        "embedding_optimizer": preset.embedding_optimizer,
    }
    step = Step(
        model.to(device),
        make_loss(preset.model.loss),
        train.model_copy(update=optimizers),
        torch.cuda.synchronize if is_gpu else lambda: None,
    )
    batches = [
        draw_rows(preset, cardinalities, batch_size, generator).to(device) for _ in range(BATCHES)
    ]
    times_ms, tables_ms = [], []
    for number in range(ROUNDS + 1):
        started_s, tables_s = time.perf_counter(), step.tables_s
        step(batches[number % BATCHES])
        if number > 0:  # the first one warms up
            times_ms.append(1000 * (time.perf_counter() - started_s))
            tables_ms.append(1000 * (step.tables_s - tables_s))
    step_ms, of_tables_ms = statistics.median(times_ms), statistics.median(tables_ms)
    values = sum(preset.list_lengths)
    print(
        f"{name}: {batch_size:,} rows a step, {values} ids a row, {sum(cardinalities):,} table rows"
        f" of {preset.model.embedding_dim} numbers\n"
        f"{step_ms:,.1f} ms a step, of which {of_tables_ms:,.1f} ms embedding lookup and update;"
        f" {1000 * batch_size / step_ms:,.0f} rows/s"
    )
