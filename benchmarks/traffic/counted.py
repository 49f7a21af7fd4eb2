"""The measured part: gloo ranks train some steps in each mode and count the bytes they send."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from speed.work import CARDINALITIES, SCHEMA

from benchmarks.traffic.network_counter import WARM_STEPS, count_steps
from benchmarks.traffic.traffic_model import collectives, totals
from common.config.params import Params, load_params
from features.sample.values import ValueSampler
from features.schema.schema import load_schema
from training.distributed.sharding.placement_report import TablePlacement, data_parallel_placement
from training.models.factory import Group

MODES = ("data", "model", "hybrid")
TABLE_DIVISOR = 16  # Kaggle's tables have that many times as many rows
BATCH_SIZE = 4096  # of all ranks
STEPS = 3
DIM = 16


class Measured(NamedTuple):
    """Bytes that each rank sends in a step of one mode.

    Attributes:
        mode: The value of train.parallel.
        by_system: Counted by the operating system.
        by_collectives: Counted by collective.
        by_plan: Predicted by the traffic model.
        messages: Predicted by the traffic model for each message; mean of the ranks.
    """

    mode: str
    by_system: list[float]
    by_collectives: list[float]
    by_plan: list[float]
    messages: Counter[str]


def cardinalities() -> list[int]:
    """Return the rows of each table."""
    return [max(2, rows // TABLE_DIVISOR) for rows in CARDINALITIES]


def make_params(mode: str, num_ranks: int) -> Params:
    """Return the shipped parameters for a mode and a number of ranks."""
    params = load_params()
    train = params.train.model_copy(
        update={
            "devices": num_ranks,
            "parallel": mode,
            "batch_size": BATCH_SIZE,
            "accelerator": "cpu",
        }
    )
    model = params.model.model_copy(update={"embedding_dim": DIM})
    return params.model_copy(update={"model": model, "train": train})


def write_rows(directory: Path) -> None:
    """Write features with the popularity laws of the sample log.

    An epoch has one step more than are trained.
    """
    schema, random = load_schema(SCHEMA), np.random.default_rng(0)
    assert schema.sample is not None
    num_rows = (WARM_STEPS + STEPS + 1) * BATCH_SIZE
    drawn = ValueSampler(schema, schema.sample).day(0).draw(num_rows, random)
    ids = {
        name: (drawn.ranks[name] % size).astype(np.int32)
        for name, size in zip(schema.categorical, cardinalities(), strict=True)
    }
    dense = {
        name: random.standard_normal(num_rows).astype(np.float32) for name in schema.dense_features
    }
    labels = (random.random(num_rows) < schema.sample.label_rate).astype(np.uint8)
    frame = pl.DataFrame(
        {
            schema.label: labels,
            **dense,
            **dict(zip(schema.categorical_features, ids.values(), strict=True)),
        }
    )
    for split in ("train", "valid"):
        (directory / split).mkdir()
        frame.write_parquet(directory / split / "day_000.parquet")


def run_rank(directory: Path) -> None:
    """Count as a worker of torchrun, one mode after the other, and write the counts to files."""
    num_ranks, rank = int(os.environ["WORLD_SIZE"]), os.environ["RANK"]
    for mode in MODES if num_ranks > 1 else MODES[:1]:
        found = count_steps(
            make_params(mode, num_ranks), directory, load_schema(SCHEMA), cardinalities(), STEPS
        )
        counts = {**found._asdict(), "by_collective": sum(found.by_collective.values())}
        (directory / f"{mode}_{num_ranks}_{rank}.json").write_text(json.dumps(counts))


def measure(script: Path, most_ranks: int) -> dict[int, list[Measured]]:
    """Measure each number of ranks in each mode; with one rank all modes are the same."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_rows(directory)
        for num_ranks in range(1, most_ranks + 1):
            torchrun = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={num_ranks}",
            ]
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(
                [*torchrun, str(script), "--rank", scratch],
                check=True,
                env=env,
                stdout=subprocess.DEVNULL,
            )
            found[num_ranks] = [
                read(directory, mode, num_ranks) for mode in (MODES if num_ranks > 1 else MODES[:1])
            ]
    return found


def read(directory: Path, mode: str, num_ranks: int) -> Measured:
    """Read the counts of all ranks, and add the prediction."""
    ranks = [
        json.loads((directory / f"{mode}_{num_ranks}_{rank}.json").read_text())
        for rank in range(num_ranks)
    ]
    sent = collectives(
        placement_of(ranks[0]["plan"], num_ranks), BATCH_SIZE, ranks[0]["dense_bytes"], num_ranks
    )
    messages: Counter[str] = Counter()
    for one in sent:
        messages[one.message] += float(one.sent.total_n.mean())
    counted = [[rank[count] for rank in ranks] for count in ("by_system", "by_collective")]
    return Measured(mode, *counted, totals(sent).tolist(), messages)


def placement_of(rows: Sequence[Sequence[object]], num_ranks: int) -> list[TablePlacement]:
    """Return the placement from JSON; that of data parallelism if there are no rows."""
    if rows:
        return [TablePlacement(*row) for row in rows]  # type: ignore[arg-type]
    return data_parallel_placement(
        [Group(cardinalities(), DIM)], load_params().train.embedding_optimizer.name, num_ranks
    )
