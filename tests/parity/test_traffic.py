"""The counted bytes that ranks send in a training step equal those of the traffic model."""

import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import torch.distributed as dist

from common.artifact import write_manifest
from common.config.params import Params
from common.layout import FEATURES
from features.schema.schema import load_schema
from tests.factories.features import training_params, write_features
from tests.factories.ranks import on_ranks, quietly

pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")

from benchmarks.traffic.network_counter import Collectives, Counted, count_steps
from benchmarks.traffic.traffic_model import collectives, totals
from training.distributed.sharding.placement_report import data_parallel_placement
from training.models.factory import Group

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux", reason="only Linux counts the bytes of a connection"
    ),
]

ROWS = 24  # the rows of a batch on each rank
FACTORS = [1000, *[1, 10] * 20]  # rows of each table / ROWS; every second table is small
STEPS = 2
KINDS = {
    "int64": {"sizes"},
    "int32": {"ids"},
    "float32": {"rows", "rows' gradients", "whole tables", "dense gradients"},
}


def write_spread(root: Path, num_ranks: int) -> list[int]:
    """Write features and return the cardinalities.

    The ids of a rank's share of a batch are spread evenly over each table.
    """
    schema = write_features(root, {"train": [7 * num_ranks * ROWS], "valid": [10], "test": [10]})
    factors = dict(zip(schema.categorical, FACTORS, strict=False))
    (path,) = (root / "artifacts/features/train").glob("*.parquet")
    row = pl.int_range(pl.len(), dtype=pl.Int32)
    ids = [(row % ROWS * factor).cast(pl.Int32).alias(name) for name, factor in factors.items()]
    pl.read_parquet(path).with_columns(ids).write_parquet(path)
    write_manifest(root / FEATURES, {})
    return [ROWS * factor for factor in factors.values()]


def count_runs(runs: list[Params], root: Path, cardinalities: list[int]) -> list[Counted]:
    """Count the bytes that this rank sends in each run."""
    quietly(root, "output.txt")
    return [
        count_steps(
            params, root / "artifacts/features", load_schema("criteo"), cardinalities, STEPS
        )
        for params in runs
    ]


def runs_of(num_ranks: int) -> dict[str, Params]:
    """Return the parameters of a run for each value of train.parallel."""
    common: dict[str, Any] = {
        "devices": num_ranks,
        "batch_size": num_ranks * ROWS,
        "shuffle_rows": 0,
    }
    return {mode: training_params(parallel=mode, **common) for mode in ("data", "model", "hybrid")}


@pytest.mark.parametrize(("num_ranks", "ranks_per_node"), [(2, 2), (3, 3), (4, 2)])
def test_ranks_send_what_the_model_predicts(
    tmp_path: Path, num_ranks: int, ranks_per_node: int
) -> None:
    """The counted and the predicted bytes are equal for each rank and dtype.

    The operating system counts up to 40 % more bytes here, because gloo sends headers. Steps of the
    benchmark send megabytes, and headers are less than half a percent of them.
    """
    cardinalities, runs = write_spread(tmp_path, num_ranks), runs_of(num_ranks)
    ranks = on_ranks(
        num_ranks,
        count_runs,
        list(runs.values()),
        tmp_path,
        cardinalities,
        ranks_per_node=ranks_per_node,
    )
    for k, (name, params) in enumerate(runs.items()):
        of_ranks = [of_rank[k] for of_rank in ranks]
        lines = of_ranks[0].plan or data_parallel_placement(
            [Group(cardinalities, params.model.embedding_dim)], "rowwise_adagrad", num_ranks
        )
        planned = collectives(
            lines, params.train.batch_size, of_ranks[0].dense_bytes, ranks_per_node
        )
        for rank, found in enumerate(of_ranks):
            for dtype, messages in KINDS.items():
                expected = sum(one.sent.total_n[rank] for one in planned if one.message in messages)
                called = sum(
                    num_bytes
                    for (_, of_dtype), num_bytes in found.by_collective.items()
                    if of_dtype == dtype
                )
                assert called == pytest.approx(expected, abs=1e-6), (name, rank, dtype)
            assert 1 < found.by_system / totals(planned)[rank] < 1.4, (name, rank)
    assert [{line.kind for line in of_mode.plan} for of_mode in ranks[0]] == [
        set(),
        {"table_wise", "row_wise"},
        {"replicated", "row_wise"},
    ]


def count_broadcast() -> str:
    """Return the error of a collective that the counter does not know."""
    with pytest.raises(NotImplementedError) as caught, Collectives():
        dist.broadcast(torch.zeros(1), 0)
    return str(caught.value)


def test_an_unknown_collective_is_an_error() -> None:
    assert on_ranks(1, count_broadcast) == ["c10d's broadcast is not counted here"]
