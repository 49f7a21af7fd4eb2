"""What one rank has of a tensor that is spread over ranks, or is not: TorchRec's tensors are torch's ShardedTensors."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard


def shards_of(part: Any) -> list[tuple[int, Tensor]]:
    """First row and rows of each piece."""
    if isinstance(part, ShardedTensor):
        return [(shard.metadata.shard_offsets[0], shard.tensor) for shard in part.local_shards()]
    return [(0, part)]


@torch.no_grad()
def put(part: Any, values: Tensor) -> None:
    """The values of a whole table, or of its first rows, into what this rank has of it."""
    for start, rows in shards_of(part):
        found = values[start : start + len(rows)]
        rows[: len(found)].copy_(found)


def zeros_like(part: Any) -> Any:
    """Zeros that lie as it does."""
    if isinstance(part, ShardedTensor):
        shards = [Shard(torch.zeros_like(shard.tensor), shard.metadata) for shard in part.local_shards()]
        return ShardedTensor._init_from_local_shards_and_global_metadata(shards, part.metadata())
    return torch.zeros_like(part)
