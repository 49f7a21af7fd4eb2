"""What a step sends, added up by hand: two nodes of two ranks, 10 rows of a batch of 38 on the fullest rank."""

from collections.abc import Sequence

import numpy as np
import pytest

from training.sharding.lines import Line

pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")

from training.sharding.plan import Group
from training.sharding.traffic import ASKED, Backend, Collective, collectives, gathered_lines, totals

B, P, DENSE_BYTES = 38, 10, 400
ROWS = [9, 10, 9, 10]  # of the batch
TABLE_WISE = [Line("0.0", 8, 5, "table_wise", [0, 192, 0, 0])]


def sent(lines: Sequence[Line], backend: Backend = "nccl", ranks_per_node: int = 2) -> dict[str, list[tuple[float, float]]]:
    """By message, of each rank (inside, between); without the dense gradients, which are the same in all."""
    dense, *others = collectives(lines, B, DENSE_BYTES, ranks_per_node, backend)
    assert dense.message == "dense gradients"
    assert set(dense.sent.total_n) == {600}  # 2 x 3/4 x 400
    return by_message(others)


def by_message(found: Sequence[Collective]) -> dict[str, list[tuple[float, float]]]:
    of_message: dict[str, np.ndarray] = {}
    for name, of_senders, of_receivers in found:
        of_message[name] = of_message.get(name, 0) + np.stack(of_senders, axis=1)
        for sent_n, received_n in zip(of_senders, of_receivers, strict=True):  # nothing is lost, in a node or between nodes
            assert sent_n.sum() == pytest.approx(received_n.sum())
    return {name: [tuple(pair) for pair in pairs.tolist()] for name, pairs in of_message.items()}


def test_a_whole_table_on_one_rank() -> None:
    """Rank 1 has 8 x 5: it sends everyone 10 rows of 5 floats, and gets as many gradients, 10 lengths and up to 10 ids."""
    found = sent(TABLE_WISE)
    ids = [4 * (P + rows) for rows in ROWS]
    assert found == {
        "sizes": [(24, 48)] * 4,
        "ids": [(ids[0], 0), (0, 0), (0, ids[2]), (0, ids[3])],
        "rows": [(0, 0), (200, 400), (0, 0), (0, 0)],
        "rows' gradients": [(200, 0), (0, 0), (0, 200), (0, 200)],
    }


def test_a_cache_makes_no_difference() -> None:
    assert sent([line._replace(kind="table_wise, cached") for line in TABLE_WISE]) == sent(TABLE_WISE)


def test_the_rank_of_a_whole_table_gets_all_gradients_of_it() -> None:
    (gradients,) = (one for one in collectives(TABLE_WISE, B, 0, 2) if one.message == "rows' gradients")
    assert gradients.received.inside_n.tolist() == [0, 200, 0, 0]
    assert gradients.received.between_n.tolist() == [0, 400, 0, 0]


def test_a_table_split_over_all_ranks_sends_every_rank_everyones_rows() -> None:
    lines = [Line("0.0", 8, 4, "row_wise", [40] * 4)]
    found = sent(lines)
    assert found["ids"] == [(4 * (P + rows / 4), 8 * (P + rows / 4)) for rows in ROWS]
    ring = 3 * 4 * P * 4  # to the next rank, of another node for one ring of two
    assert found["rows"] == found["rows' gradients"] == [(ring / 2, ring / 2)] * 4
    on_gloo = sent(lines, "gloo")
    assert on_gloo["rows"] == [(ring, ring)] * 4
    assert {**on_gloo, "rows": found["rows"]} == found


def test_a_table_split_over_a_node() -> None:
    """The second one: its two ranks add up the rows of all 40 of the four ranks, and send each its 10 across."""
    found = sent([Line("0.0", 8, 4, "table_row_wise", [0, 0, 80, 80])])
    in_node, across = 4 * 20 * 4, 4 * P * 4
    assert found["rows"] == [(0, 0), (0, 0), (in_node, across), (in_node, across)]
    assert found["rows' gradients"] == [(0, across), (0, across), (in_node, 0), (in_node, 0)]
    assert found["ids"] == [
        *((0, 4 * (2 * P + rows)) for rows in ROWS[:2]),
        *((4 * (P + rows / 2), 0) for rows in ROWS[2:]),
    ]


def test_what_all_ranks_have() -> None:
    groups = [Group([3, 7], 4), Group([50], 2)]
    replicated = [Line("0.0", 3, 4, "replicated", [60] * 4), Line("1.0", 50, 2, "replicated", [600] * 4)]
    assert sent(replicated) == {"whole tables": [(336, 336)] * 4}  # 2 x 3/4 x 4 x (3 x 4 + 50 x 2)
    found = sent(gathered_lines(groups, "rowwise_adagrad", 4))
    assert found == {"ids": [(180, 180)] * 4, "rows' gradients": [(600, 600)] * 4}  # 3 x 10 x 4 x (1 + 1 + 1 and 4 + 4 + 2)
    assert [line.rank_bytes for line in gathered_lines(groups, "rowwise_adagrad", 4)] == [[60] * 4, [140] * 4, [600] * 4]


def test_rows_sent_to_who_asked_alone_are_the_least() -> None:
    lines = [Line("0.0", 8, 4, ASKED, [40] * 4)]
    found = sent(lines)
    assert found["rows"] == found["rows' gradients"] == [(40, 80)] * 4  # 10 rows of 4 floats, a quarter for each
    assert found["ids"] == [(rows, 2 * rows) for rows in ROWS]
    split = [line._replace(kind="row_wise") for line in lines]
    assert totals(collectives(lines, B, 0, 2)).max() < totals(collectives(split, B, 0, 2)).min()


def test_one_rank_sends_nothing_and_one_node_nothing_to_others() -> None:
    kinds = ["replicated", "table_wise", "row_wise", "table_row_wise", "gathered"]
    alone = collectives([Line("0.0", 8, 4, kind, [160]) for kind in kinds], B, DENSE_BYTES, 1)
    assert totals(alone).tolist() == [0]
    four = collectives([Line("0.0", 8, 4, kind, [160, 0, 0, 0]) for kind in kinds], B, DENSE_BYTES, 4)
    assert all(one.sent.between_n.tolist() == [0] * 4 for one in four)
    assert totals(four).min() > 0
