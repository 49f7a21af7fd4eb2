"""The order of the rows of a sharded table, and access to the shards that this rank has.

Frequent values have the first ids, and ranks have blocks of rows, so without a permutation the
first rank would be asked for nearly all rows. Therefore row r of table number k of n rows is stored
at position (r + k) S mod n. The stride S is near n times the golden ratio, which spreads any first
few rows evenly over the positions (Knuth, The Art of Computer Programming 3, section 6.4); k
spreads the first rows of all tables. The positions depend on k and n alone, so a checkpoint does
not depend on the number of ranks.

A table that several ranks share is a torch ShardedTensor; another one is a plain tensor.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard

Integers = int | Tensor
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def stride_of(num_rows: int) -> int:
    """Return S: the first number >= num_rows * GOLDEN_RATIO that is coprime to num_rows."""
    stride = max(1, round(num_rows * GOLDEN_RATIO))
    while math.gcd(stride, num_rows) > 1:
        stride += 1
    return stride


def positions_of(rows: Tensor, k: Integers, num_rows: Integers, stride: Integers) -> Tensor:
    """Return the positions of rows, int64.

    Args:
        rows: Rows of one table, or a column of rows of each table.
        k: Number of the table, or of each column's table; likewise for the others.
        num_rows: Rows of the table.
        stride: stride_of(num_rows).
    """
    return (rows.long() + k) * stride % num_rows


def rows_at(positions: Tensor, k: int, num_rows: int) -> Tensor:
    """Return the rows that are stored at positions of table number k, int64."""
    inverse_stride = pow(stride_of(num_rows), -1, num_rows)
    return (positions.long() * inverse_stride - k) % num_rows


def is_sharded(part: Any) -> bool:
    """Return whether ranks share a table, or what an optimizer keeps for each of its rows."""
    return isinstance(part, ShardedTensor)


def shards_of(part: Any) -> list[tuple[int, Tensor]]:
    """Return the shards of this rank: the first position of each, and its rows."""
    if isinstance(part, ShardedTensor):
        return [(shard.metadata.shard_offsets[0], shard.tensor) for shard in part.local_shards()]
    return [(0, part)]


@torch.no_grad()
def permute(k: int, part: Any, values: Tensor, first_row: int = 0) -> None:
    """Copy values into the positions of table number k that this rank has.

    Args:
        k: Number of the table.
        part: The table, or what an optimizer keeps for each of its rows.
        values: One for each of some consecutive rows of the table.
        first_row: The first of these rows.
    """
    num_rows = part.metadata().size[0] if isinstance(part, ShardedTensor) else len(part)
    rows = torch.arange(first_row, first_row + len(values))
    positions = positions_of(rows, k, num_rows, stride_of(num_rows))
    for start, shard in shards_of(part):
        places = positions - start
        is_here = ((places >= 0) & (places < len(shard))).nonzero().squeeze(1)
        shard[places[is_here].to(shard.device)] = values[is_here].to(shard.device)


@torch.no_grad()
def unpermute(k: int, part: Tensor) -> None:
    """Put the rows of a whole table from their positions into their own order, in place."""
    num_rows = len(part)
    part.copy_(part[positions_of(torch.arange(num_rows), k, num_rows, stride_of(num_rows))])


def zeros_like(part: Any) -> Any:
    """Return zeros with the shape and the shards of a tensor."""
    if isinstance(part, ShardedTensor):
        shards = [
            Shard(torch.zeros_like(shard.tensor), shard.metadata) for shard in part.local_shards()
        ]
        return ShardedTensor._init_from_local_shards_and_global_metadata(shards, part.metadata())
    return torch.zeros_like(part)
