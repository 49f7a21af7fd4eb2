"""What a step sends, added up by hand: two nodes of two ranks, 10 rows of a batch of 38 on the fullest rank."""

from collections.abc import Sequence

import numpy as np
import pytest

from training.distributed.sharding.placement_report import TablePlacement

pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")

from benchmarks.traffic.traffic_model import Collective, collectives, totals
from training.distributed.sharding.placement_report import data_parallel_placement
from training.models.factory import Group

B, P, DENSE_BYTES = 38, 10, 400
ROWS = [9, 10, 9, 10]  # of the batch
TABLE_WISE = [TablePlacement("0.0", 8, 5, "table_wise", [0, 192, 0, 0])]


def sent(lines: Sequence[TablePlacement], ranks_per_node: int = 2) -> dict[str, list[tuple[float, float]]]:
    """By message, of each rank (inside, between); without the dense gradients, which are the same in all."""
    dense, *others = collectives(lines, B, DENSE_BYTES, ranks_per_node)
    assert dense.message == "dense gradients"
    assert set(dense.sent.total_n) == {600}  # 2 x 3/4 x 400
    return by_message(others)


def by_message(found: Sequence[Collective]) -> dict[str, list[tuple[float, float]]]:
    of_message: dict[str, np.ndarray] = {}
    for name, of_senders, of_receivers in found:
        of_message[name] = of_message.get(name, 0) + np.stack(of_senders, axis=1)
        for sent_n, received_n in zip(
            of_senders, of_receivers, strict=True
        ):  # nothing is lost, in a node or between nodes
            assert sent_n.sum() == pytest.approx(received_n.sum())
    return {name: [tuple(pair) for pair in pairs.tolist()] for name, pairs in of_message.items()}


def test_a_whole_table_on_one_rank() -> None:
    """Rank 1 has 8 x 5: it gets a length and up to 10 ids of everyone, sends as many rows of 5 floats, and gets their gradients."""
    found = sent(TABLE_WISE)
    ids = [4 * (1 + rows) for rows in ROWS]
    assert found == {
        "sizes": [(24, 48)] * 4,
        "ids": [(ids[0], 0), (0, 0), (0, ids[2]), (0, ids[3])],
        "rows": [(0, 0), (20 * ROWS[0], 20 * (ROWS[2] + ROWS[3])), (0, 0), (0, 0)],
        "rows' gradients": [(20 * ROWS[0], 0), (0, 0), (0, 20 * ROWS[2]), (0, 20 * ROWS[3])],
    }


def test_a_cache_makes_no_difference() -> None:
    assert sent([line._replace(kind="table_wise, cached") for line in TABLE_WISE]) == sent(
        TABLE_WISE
    )


def test_a_table_split_over_all_ranks() -> None:
    """8 rows of 4 floats, a quarter for each: a rank asks each other for a quarter of its rows, and is asked by each for one of theirs."""
    lines = [TablePlacement("0.0", 8, 4, "row_wise", [40] * 4)]
    found = sent(lines)
    assert found["ids"] == [(4 * (1 + rows / 4), 8 * (1 + rows / 4)) for rows in ROWS]
    assert found["rows' gradients"] == [(4 * rows, 8 * rows) for rows in ROWS]
    others = [
        (ROWS[1], ROWS[2] + ROWS[3]),
        (ROWS[0], ROWS[2] + ROWS[3]),
        (ROWS[3], ROWS[0] + ROWS[1]),
        (ROWS[2], ROWS[0] + ROWS[1]),
    ]
    assert found["rows"] == [(4 * near, 4 * far) for near, far in others]


def test_what_all_ranks_have() -> None:
    groups = [Group([3, 7], 4), Group([50], 2)]
    replicated = [
        TablePlacement("0.0", 3, 4, "replicated", [60] * 4),
        TablePlacement("1.0", 50, 2, "replicated", [600] * 4),
    ]
    assert sent(replicated) == {"whole tables": [(336, 336)] * 4}  # 2 x 3/4 x 4 x (3 x 4 + 50 x 2)
    found = sent(data_parallel_placement(groups, "rowwise_adagrad", 4))
    assert found == {
        "ids": [(180, 180)] * 4,
        "rows' gradients": [(600, 600)] * 4,
    }  # 3 x 10 x 4 x (1 + 1 + 1 and 4 + 4 + 2)
    assert [line.rank_bytes for line in data_parallel_placement(groups, "rowwise_adagrad", 4)] == [
        [60] * 4,
        [140] * 4,
        [600] * 4,
    ]


def test_one_rank_sends_nothing_and_one_node_nothing_to_others() -> None:
    kinds = ["replicated", "table_wise", "row_wise", "gathered"]
    alone = collectives([TablePlacement("0.0", 8, 4, kind, [160]) for kind in kinds], B, DENSE_BYTES, 1)
    assert totals(alone).tolist() == [0]
    four = collectives(
        [TablePlacement("0.0", 8, 4, kind, [160, 0, 0, 0]) for kind in kinds], B, DENSE_BYTES, 4
    )
    assert all(one.sent.between_n.tolist() == [0] * 4 for one in four)
    assert totals(four).min() > 0
