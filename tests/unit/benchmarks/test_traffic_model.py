"""The traffic model against sums by hand.

There are two nodes of two ranks, and a batch of 38 rows, of which the fullest ranks have 10.
"""

from collections.abc import Sequence

import numpy as np
import pytest

from training.distributed.sharding.placement_report import (
    TablePlacement,
    data_parallel_placement,
)

pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")

from benchmarks.traffic.traffic_model import Collective, collectives, totals
from training.models.factory import Group

B, P, DENSE_BYTES = 38, 10, 400
ROWS = [9, 10, 9, 10]  # of the batch, on each rank
TABLE_WISE = [TablePlacement("0.0", 8, 5, "table_wise", [0, 192, 0, 0])]


def sent(
    placement: Sequence[TablePlacement], ranks_per_node: int = 2
) -> dict[str, list[tuple[float, float]]]:
    """Return the bytes (inside, between nodes) of each rank and message but the dense gradients."""
    dense, *others = collectives(placement, B, DENSE_BYTES, ranks_per_node)
    assert dense.message == "dense gradients"
    assert set(dense.sent.total_n) == {600}  # 2 x 3/4 x 400
    return by_message(others)


def by_message(sent_by: Sequence[Collective]) -> dict[str, list[tuple[float, float]]]:
    """Add up the collectives of each message, and check that all bytes are received."""
    of_message: dict[str, np.ndarray] = {}
    for name, of_senders, of_receivers in sent_by:
        of_message[name] = of_message.get(name, 0) + np.stack(of_senders, axis=1)
        for sent_n, received_n in zip(of_senders, of_receivers, strict=True):
            assert sent_n.sum() == pytest.approx(received_n.sum())
    return {name: [tuple(pair) for pair in pairs.tolist()] for name, pairs in of_message.items()}


def test_a_whole_table_on_one_rank() -> None:
    """Rank 1 has the table of 8 rows of 5 floats.

    It receives a length and up to 10 ids from each other rank, sends as many rows, and receives
    their gradients.
    """
    found = sent(TABLE_WISE)
    ids = [4 * (1 + rows) for rows in ROWS]
    assert found == {
        "sizes": [(24, 48)] * 4,
        "ids": [(ids[0], 0), (0, 0), (0, ids[2]), (0, ids[3])],
        "rows": [(0, 0), (20 * ROWS[0], 20 * (ROWS[2] + ROWS[3])), (0, 0), (0, 0)],
        "rows' gradients": [(20 * ROWS[0], 0), (0, 0), (0, 20 * ROWS[2]), (0, 20 * ROWS[3])],
    }


def test_a_cache_makes_no_difference() -> None:
    cached = [table._replace(kind="table_wise, cached") for table in TABLE_WISE]
    assert sent(cached) == sent(TABLE_WISE)


def test_a_table_split_over_all_ranks() -> None:
    """Each rank has a quarter of the table of 8 rows of 4 floats.

    So a rank needs a quarter of the rows of its batch from each other rank.
    """
    found = sent([TablePlacement("0.0", 8, 4, "row_wise", [40] * 4)])
    assert found["ids"] == [(4 * (1 + rows / 4), 8 * (1 + rows / 4)) for rows in ROWS]
    assert found["rows' gradients"] == [(4 * rows, 8 * rows) for rows in ROWS]
    others = [
        (ROWS[1], ROWS[2] + ROWS[3]),
        (ROWS[0], ROWS[2] + ROWS[3]),
        (ROWS[3], ROWS[0] + ROWS[1]),
        (ROWS[2], ROWS[0] + ROWS[1]),
    ]
    assert found["rows"] == [(4 * near, 4 * far) for near, far in others]


def test_tables_that_all_ranks_have() -> None:
    groups = [Group([3, 7], 4), Group([50], 2)]
    replicated = [
        TablePlacement("0.0", 3, 4, "replicated", [60] * 4),
        TablePlacement("1.0", 50, 2, "replicated", [600] * 4),
    ]
    assert sent(replicated) == {"whole tables": [(336, 336)] * 4}  # 2 x 3/4 x 4 x (3 x 4 + 50 x 2)
    placement = data_parallel_placement(groups, "rowwise_adagrad", 4)
    # 3 x 10 x 4 x (1 + 1 + 1) and 3 x 10 x 4 x (4 + 4 + 2), half of it to the other node
    assert sent(placement) == {"ids": [(180, 180)] * 4, "rows' gradients": [(600, 600)] * 4}
    assert [table.rank_bytes for table in placement] == [
        [60] * 4,
        [140] * 4,
        [600] * 4,
    ]


def test_one_rank_sends_nothing_and_one_node_nothing_to_others() -> None:
    kinds = ["replicated", "table_wise", "row_wise", "gathered"]
    on_one = [TablePlacement("0.0", 8, 4, kind, [160]) for kind in kinds]
    alone = collectives(on_one, B, DENSE_BYTES, 1)
    assert totals(alone).tolist() == [0]
    on_four = [TablePlacement("0.0", 8, 4, kind, [160, 0, 0, 0]) for kind in kinds]
    four = collectives(on_four, B, DENSE_BYTES, 4)
    assert all(one.sent.between_n.tolist() == [0] * 4 for one in four)
    assert totals(four).min() > 0
