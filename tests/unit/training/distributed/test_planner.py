"""Which rank has which table, and how that is told."""

from pathlib import Path

import pytest
import torch

from common.config.loading import ConfigError
from tests.factories.features import make_params
from training.distributed.sharding.placement_report import (
    Line,
    as_text,
    imbalance,
    rank_totals,
    read_plan,
    write_plan,
)
from training.models.factory import Group, groups_of

pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")

from training.distributed.sharding.planner import World, choose_kinds, lines_of, place

CPU = torch.device("cpu")
GROUPS = [Group([4000, 900, 100, 64, 8], 16)]


def world(num_ranks: int, ranks_per_node: int | None = None, rank_bytes: int = 1 << 30) -> World:
    return World(num_ranks, ranks_per_node or num_ranks, CPU, 0, rank_bytes)


@pytest.mark.parametrize(
    ("parallel", "a_world", "kinds"),
    [
        (
            "model",
            world(4),
            ["row_wise", "row_wise", "row_wise", "table_wise", "table_wise"],
        ),  # 64 rows of a batch on a rank
        ("hybrid", world(4), ["row_wise", "row_wise", "row_wise", "replicated", "replicated"]),
        (
            "hybrid",
            world(8, 4),
            ["row_wise", "row_wise", "row_wise", "row_wise", "replicated"],
        ),  # 32 rows
    ],
)
def test_small_tables_stay_whole_and_others_are_split(
    parallel: str, a_world: World, kinds: list[str]
) -> None:
    assert choose_kinds(GROUPS, parallel, 256, a_world) == [kinds]


def test_rows_that_fbgemm_cannot_take_stay_whole_or_are_refused() -> None:
    groups = [Group([4000, 900], 4), Group([5000], 2)]
    assert choose_kinds(groups, "hybrid", 256, world(2)) == [
        ["row_wise", "row_wise"],
        ["replicated"],
    ]
    with pytest.raises(
        ConfigError,
        match=r"train.parallel is model, but rows of 2 floats cannot .*; change model.embedding_dim",
    ):
        choose_kinds(groups, "model", 256, world(2))


def test_whole_tables_are_dealt_out_evenly_and_every_row_has_its_place() -> None:
    groups = [Group([700, 400, 300, 600], 8), Group([5, 3], 4)]
    kinds = [["table_wise", "row_wise", "table_wise", "replicated"], ["table_wise", "row_wise"]]
    lines = lines_of(
        groups, place(groups, kinds, "rowwise_adagrad", 64, world(3)), "rowwise_adagrad", 3
    )
    assert [line.table for line in lines] == ["0.0", "0.1", "0.2", "0.3", "1.0", "1.1"]
    row_bytes = [36, 36, 36, 36, 20, 20]  # dim and a sum
    for line, size in zip(lines, row_bytes, strict=True):
        assert sum(line.rank_bytes) == line.num_rows * size * (
            3 if line.kind == "replicated" else 1
        )
    assert lines[1].rank_bytes == [134 * 36, 134 * 36, 132 * 36]
    assert sorted(lines[5].rank_bytes) == [20, 20, 20]
    assert [
        rank for line in (lines[0], lines[2]) for rank, size in enumerate(line.rank_bytes) if size
    ] in ([0, 1], [1, 0])


def test_tables_beyond_the_ranks_memory_are_refused() -> None:
    groups = [Group([10_000_000, 500], 16)]
    with pytest.raises(
        ConfigError,
        match=r"10,000,500 rows of .* do not fit into 2 ranks of 0.0 GiB on the device and 0.2 GiB of the host .*; raise train.devices",
    ):
        place(groups, [["row_wise", "table_wise"]], "sgd", 64, world(2, rank_bytes=200 << 20))


@pytest.mark.parametrize(
    ("device_mib", "host_mib", "cached"),
    [
        (4000, 4000, []),
        (600, 4000, ["0.0"]),  # 610 MiB of rows in two parts, beside 244 MiB on one rank
        (600, 100, None),
    ],
)
def test_what_finds_no_room_on_the_gpus_is_cached_there(
    device_mib: int, host_mib: int, cached: list[str] | None
) -> None:
    """By the planner's account alone: there is no GPU here."""
    gpus = World(2, 2, torch.device("cuda"), device_mib << 20, host_mib << 20)
    groups = [Group([10_000_000, 4_000_000, 3_000, 200], 16)]
    kinds = [["row_wise", "table_wise", "table_wise", "replicated"]]
    if cached is None:
        with pytest.raises(
            ConfigError,
            match=r"do not fit into 2 ranks of 0.6 GiB on the device and 0.1 GiB of the host",
        ):
            place(groups, kinds, "sgd", 64, gpus)
        return
    lines = lines_of(groups, place(groups, kinds, "sgd", 64, gpus), "sgd", 2)
    assert [line.table for line in lines if line.kind.endswith(", cached")] == cached
    assert as_text(lines)[1].split()[:5] == [
        "0.0",
        "10,000,000",
        "16",
        *(["row_wise,", "cached"] if cached else ["row_wise", "all"]),
    ]


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
def test_the_groups_are_those_that_the_model_makes_in_its_order(
    tables: dict[str, object], groups: list[Group]
) -> None:
    assert groups_of(make_params({"tables": tables}).model, [3, 50, 7]) == groups


def test_the_plan_is_told_and_comes_back(tmp_path: Path) -> None:
    lines = [
        Line("a", 3, 4, "replicated", [48, 48]),
        Line("b", 1 << 20, 4, "row_wise", [8 << 20, 8 << 20]),
        Line("c", 2, 4, "table_wise", [0, 32]),
    ]
    assert (rank_totals(lines), imbalance(lines)) == (
        [(8 << 20) + 48, (8 << 20) + 80],
        pytest.approx(1, abs=1e-5),
    )
    text = as_text(lines)
    assert [line.split()[0] for line in text] == ["table", "b", "a", "c", "all"]
    assert text[1].split() == ["b", "1,048,576", "4", "row_wise", "all", "8.000"]
    assert text[3].split()[-2] == "1"
    write_plan(tmp_path / "plan.csv", lines)
    assert read_plan(tmp_path / "plan.csv") == lines
    assert read_plan(tmp_path / "none.csv") == []
