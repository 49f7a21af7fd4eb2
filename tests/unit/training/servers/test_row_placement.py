"""The places of rows on table servers."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.distributed.sharding.row_permutation import rows_at
from training.servers.row_placement import RowPlacement, blocks_of


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 6))
def test_each_row_has_one_place_on_one_server(cardinalities: list[int], num_servers: int) -> None:
    placement = RowPlacement(cardinalities, num_servers)
    num_rows = sum(cardinalities)
    indices, places = placement.split(torch.arange(num_rows))
    assert sorted(torch.cat(indices).tolist()) == list(range(num_rows))
    for server, (of_server, at) in enumerate(zip(indices, places, strict=True)):
        blocks = blocks_of(cardinalities, server, num_servers)
        expected = []  # the rows in the order in which the server stores them
        for k, block in enumerate(blocks):
            rows = rows_at(torch.arange(block.start, block.stop), k, cardinalities[k])
            expected += (rows + sum(cardinalities[:k])).tolist()
        assert np.array(expected)[at.numpy()].tolist() == of_server.tolist()
        assert sorted(at.tolist()) == list(range(len(expected)))


def test_frequent_rows_are_on_all_servers() -> None:
    indices, _ = RowPlacement([100_000], 4).split(torch.arange(100))
    assert all(20 <= len(of_server) <= 30 for of_server in indices)
