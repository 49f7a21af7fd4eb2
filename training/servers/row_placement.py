"""The servers that the rows of embedding tables are on.

The rows of a table are permuted (`row_permutation.py`), and server k of S has the k-th of S equal
blocks of positions. So each server has an equal share of the frequent rows, and the blocks in a
checkpoint are those of hybrid parallelism.

Shapes: T tables of a group, S servers, U rows.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from training.distributed.collectives import share
from training.distributed.sharding.row_permutation import positions_of, stride_of


def blocks_of(cardinalities: Sequence[int], server: int, num_servers: int) -> list[slice]:
    """Return the positions of each table that a server has."""
    return [share(num_rows, server, num_servers) for num_rows in cardinalities]


class RowPlacement:
    """Finds the servers of the rows of a group of tables.

    A server stores its blocks of all tables of the group one after the other.

    Args:
        cardinalities: The number of rows of each table, (T,).
        num_servers: S.
    """

    def __init__(self, cardinalities: Sequence[int], num_servers: int) -> None:
        self.num_servers = num_servers
        self.starts_T = torch.tensor([0, *accumulate(cardinalities)][:-1])
        self.num_rows_T = torch.tensor(cardinalities)
        self.strides_T = torch.tensor(list(map(stride_of, cardinalities)))
        # what is to be added to a position for its place on the server, one server after the other
        shifts_ST = torch.empty(num_servers, len(cardinalities), dtype=torch.int64)
        for server in range(num_servers):
            blocks = blocks_of(cardinalities, server, num_servers)
            sizes = [block.stop - block.start for block in blocks]
            for k, (block, place) in enumerate(
                zip(blocks, accumulate(sizes, initial=0), strict=False)
            ):
                shifts_ST[server, k] = place - block.start
        self.shifts = shifts_ST.flatten()

    def split(self, rows_U: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each server which of the rows it has, and their places on it.

        Args:
            rows_U: Rows in the concatenation of all tables of the group, int64.

        Returns:
            For each server the indices into `rows_U`, int64, and the places, int64.
        """
        table_U = torch.searchsorted(self.starts_T, rows_U, right=True) - 1
        # index_select takes a third of the time of indexing by a tensor
        starts_U, num_rows_U, strides_U = (
            of_tables.index_select(0, table_U)
            for of_tables in (self.starts_T, self.num_rows_T, self.strides_T)
        )
        position_U = positions_of(rows_U - starts_U, table_U, num_rows_U, strides_U)
        if self.num_servers == 1:
            return [torch.arange(len(rows_U))], [position_U + self.shifts.index_select(0, table_U)]
        server_U = ((position_U + 1) * self.num_servers - 1) // num_rows_U
        shift_of = server_U * len(self.starts_T) + table_U
        place_U = position_U + self.shifts.index_select(0, shift_of)
        indices = [(server_U == server).nonzero().squeeze(1) for server in range(self.num_servers)]
        return indices, [place_U.index_select(0, of_server) for of_server in indices]


def of_servers(values_UD: Tensor, indices: Sequence[Tensor]) -> list[Tensor]:
    """Return the values of each server, for the indices that `RowPlacement.split` returned."""
    if len(indices) == 1:
        return [values_UD]
    return [values_UD.index_select(0, of_server) for of_server in indices]


def joined(parts: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
    """Return the values (U, D) of which `of_servers` returns the parts."""
    if len(indices) == 1:
        return parts[0]
    values_UD = parts[0].new_empty(sum(map(len, indices)), parts[0].shape[1])
    for part, of_server in zip(parts, indices, strict=True):
        values_UD.index_copy_(0, of_server, part)
    return values_UD
