"""What one rank has of a tensor that is spread over ranks, or is not: TorchRec's tensors are torch's ShardedTensors.

Frequent values have the first ids, and ranks have blocks of rows, so the first rank would be asked for nearly all of them. The rows of a
table that several ranks share are dealt out instead: row r of n, of the table number k, lies at place (r + k) S mod n, with a stride S
next to n by the golden ratio, which spreads any first few rows evenly over the places (Knuth, The Art of Computer Programming 3, 6.4),
and the first rows of the tables too. It follows from k and n alone, so that any number of ranks finds a row where any other put it.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard

Number = int | Tensor
GOLDEN = (math.sqrt(5) - 1) / 2


def stride_of(num_rows: int) -> int:
    """The first number from num_rows by the golden ratio on that has no divisor in common with it."""
    stride = max(1, round(num_rows * GOLDEN))
    while math.gcd(stride, num_rows) > 1:
        stride += 1
    return stride


def places_of(rows: Tensor, k: Number, num_rows: Number, stride: Number) -> Tensor:
    """Where these rows lie; int64. k, num_rows, stride (stride_of): of one table, or of each column's."""
    return (rows.long() + k) * stride % num_rows


def rows_at(places: Tensor, k: int, num_rows: int) -> Tensor:
    """The rows that lie there; int64."""
    return (places.long() * pow(stride_of(num_rows), -1, num_rows) - k) % num_rows


def shards_of(part: Any) -> list[tuple[int, Tensor]]:
    """First place and rows of each piece."""
    if isinstance(part, ShardedTensor):
        return [(shard.metadata.shard_offsets[0], shard.tensor) for shard in part.local_shards()]
    return [(0, part)]


@torch.no_grad()
def deal(k: int, part: Any, values: Tensor) -> None:
    """The values of a whole table, or of its first rows, into what this rank has of it."""
    num_rows = part.metadata().size[0] if isinstance(part, ShardedTensor) else len(part)
    for start, mine in shards_of(part):
        rows = rows_at(torch.arange(start, start + len(mine)), k, num_rows)
        given = (rows < len(values)).nonzero().squeeze(1)
        mine[given.to(mine.device)] = values[rows[given]].to(mine.device)


@torch.no_grad()
def gather_up(k: int, part: Tensor) -> None:
    """A whole table that was read as it had been dealt out: its rows in their order again, in place."""
    part.copy_(part[places_of(torch.arange(len(part)), k, len(part), stride_of(len(part)))])


def zeros_like(part: Any) -> Any:
    """Zeros that lie as it does."""
    if isinstance(part, ShardedTensor):
        shards = [
            Shard(torch.zeros_like(shard.tensor), shard.metadata) for shard in part.local_shards()
        ]
        return ShardedTensor._init_from_local_shards_and_global_metadata(shards, part.metadata())
    return torch.zeros_like(part)
