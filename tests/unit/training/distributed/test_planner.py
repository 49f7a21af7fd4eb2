"""The placement of the embedding tables, and its report."""

from pathlib import Path

import pytest
import torch

from common.config.loading import ConfigError
from tests.factories.features import training_params
from training.distributed.sharding.placement_report import (
    TablePlacement,
    format_placement,
    imbalance,
    rank_totals,
    read_placement,
    write_placement,
)
from training.models.factory import Group, groups_of

pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")

from training.distributed.sharding.planner import World, choose_kinds, place, table_placements

CPU = torch.device("cpu")
GROUPS = [Group([4000, 900, 100, 64, 8], 16)]


def make_world(
    num_ranks: int, ranks_per_node: int | None = None, rank_bytes: int = 1 << 30
) -> World:
    """Return a world of CPU ranks; all are on one node unless ranks_per_node is given."""
    return World(num_ranks, ranks_per_node or num_ranks, CPU, 0, rank_bytes)


def plan(
    groups: list[Group], kinds: list[list[str]], optimizer: str, world: World
) -> list[TablePlacement]:
    """Place tables for a batch of 64 rows."""
    placements = place(groups, kinds, optimizer, 64, world)
    return table_placements(groups, placements, optimizer, world.num_ranks)


@pytest.mark.parametrize(
    ("parallel", "world", "kinds"),
    [
        # each rank has 64 rows of a batch
        ("model", make_world(4), ["row_wise"] * 3 + ["table_wise"] * 2),
        ("hybrid", make_world(4), ["row_wise"] * 3 + ["replicated"] * 2),
        # each rank has 32 rows of a batch
        ("hybrid", make_world(8, 4), ["row_wise"] * 4 + ["replicated"]),
    ],
)
def test_large_tables_are_split_and_small_ones_are_not(
    parallel: str, world: World, kinds: list[str]
) -> None:
    assert choose_kinds(GROUPS, parallel, 256, world) == [kinds]


def test_rows_that_fbgemm_does_not_support_are_replicated_or_refused() -> None:
    groups = [Group([4000, 900], 4), Group([5000], 2)]
    assert choose_kinds(groups, "hybrid", 256, make_world(2)) == [
        ["row_wise", "row_wise"],
        ["replicated"],
    ]
    message = r"train.parallel is model, but rows of 2 floats cannot .*; change model.embedding_dim"
    with pytest.raises(ConfigError, match=message):
        choose_kinds(groups, "model", 256, make_world(2))


def test_whole_tables_are_balanced_and_every_row_is_placed() -> None:
    groups = [Group([700, 400, 300, 600], 8), Group([5, 3], 4)]
    kinds = [["table_wise", "row_wise", "table_wise", "replicated"], ["table_wise", "row_wise"]]
    tables = plan(groups, kinds, "rowwise_adagrad", make_world(3))
    assert [table.table for table in tables] == ["0.0", "0.1", "0.2", "0.3", "1.0", "1.1"]
    row_bytes = [36, 36, 36, 36, 20, 20]  # the row and one accumulator
    for table, size in zip(tables, row_bytes, strict=True):
        copies = 3 if table.kind == "replicated" else 1
        assert sum(table.rank_bytes) == table.num_rows * size * copies
    assert tables[1].rank_bytes == [134 * 36, 134 * 36, 132 * 36]
    assert sorted(tables[5].rank_bytes) == [20, 20, 20]
    ranks = [
        rank
        for table in (tables[0], tables[2])
        for rank, num_bytes in enumerate(table.rank_bytes)
        if num_bytes
    ]
    assert ranks in ([0, 1], [1, 0])


def test_tables_that_do_not_fit_into_memory_are_refused() -> None:
    message = (
        r"10,000,500 rows of .* do not fit into 2 ranks of 0.0 GiB on the device and 0.2 GiB of"
        r" the host .*; raise train.devices"
    )
    world = make_world(2, rank_bytes=200 << 20)
    with pytest.raises(ConfigError, match=message):
        place([Group([10_000_000, 500], 16)], [["row_wise", "table_wise"]], "sgd", 64, world)


GPU_GROUPS = [Group([10_000_000, 4_000_000, 3_000, 200], 16)]
GPU_KINDS = [["row_wise", "table_wise", "table_wise", "replicated"]]


@pytest.mark.parametrize(
    ("device_mib", "cached"),
    [
        (4000, []),
        (600, ["0.0"]),  # 610 MiB of rows on two ranks, one of which has 244 MiB more
    ],
)
def test_a_table_that_does_not_fit_on_the_gpus_is_cached_there(
    device_mib: int, cached: list[str]
) -> None:
    """Only the planner uses these GPUs, so the test needs no GPU."""
    gpus = World(2, 2, torch.device("cuda"), device_mib << 20, 4000 << 20)
    tables = plan(GPU_GROUPS, GPU_KINDS, "sgd", gpus)
    assert [table.table for table in tables if table.kind.endswith(", cached")] == cached
    first_line = format_placement(tables)[1].split()
    kind = ["row_wise,", "cached"] if cached else ["row_wise", "all"]
    assert first_line[:5] == ["0.0", "10,000,000", "16", *kind]


def test_a_table_that_does_not_fit_on_gpus_and_host_is_refused() -> None:
    gpus = World(2, 2, torch.device("cuda"), 600 << 20, 100 << 20)
    message = r"do not fit into 2 ranks of 0.6 GiB on the device and 0.1 GiB of the host"
    with pytest.raises(ConfigError, match=message):
        place(GPU_GROUPS, GPU_KINDS, "sgd", 64, gpus)


@pytest.mark.parametrize(
    ("tables", "groups"),
    [
        ({"name": "full"}, [Group([3, 50, 7], 4)]),
        ({"name": "mixed_dim", "alpha": 0.5, "threshold": 10}, [Group([3, 7], 4), Group([50], 2)]),
        (
            {"name": "quotient_remainder", "operation": "mult", "collisions": 4, "threshold": 10},
            [Group([13, 4], 4), Group([3, 7], 4)],
        ),
    ],
)
def test_groups_of_returns_the_groups_in_the_order_of_the_model(
    tables: dict[str, object], groups: list[Group]
) -> None:
    assert groups_of(training_params({"tables": tables}).model, [3, 50, 7]) == groups


def test_the_placement_is_formatted_written_and_read(tmp_path: Path) -> None:
    placement = [
        TablePlacement("a", 3, 4, "replicated", [48, 48]),
        TablePlacement("b", 1 << 20, 4, "row_wise", [8 << 20, 8 << 20]),
        TablePlacement("c", 2, 4, "table_wise", [0, 32]),
    ]
    assert rank_totals(placement) == [(8 << 20) + 48, (8 << 20) + 80]
    assert imbalance(placement) == pytest.approx(1, abs=1e-5)
    text = format_placement(placement)
    assert [line.split()[0] for line in text] == ["table", "b", "a", "c", "all"]
    assert text[1].split() == ["b", "1,048,576", "4", "row_wise", "all", "8.000"]
    assert text[3].split()[-2] == "1"
    write_placement(tmp_path / "plan.csv", placement)
    assert read_placement(tmp_path / "plan.csv") == placement
    assert read_placement(tmp_path / "none.csv") == []
