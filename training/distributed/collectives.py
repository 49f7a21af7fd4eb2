"""What data-parallel ranks tell each other beside the dense gradients, which Lightning's DDP averages."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from training.loop.batches import share


def gather_rows(mine: Tensor, num_rows: int) -> Tensor:
    """A tensor (num_rows, ...) of the global batch from each rank's share of it, in rank order; alone, what is mine.

    Shares differ by a row, and gloo gathers equal shapes only: the shorter ones are padded on the way.
    """
    if not dist.is_initialized():
        return mine
    parts = [share(num_rows, rank, dist.get_world_size()) for rank in range(dist.get_world_size())]
    sizes = [part.stop - part.start for part in parts]
    padded = mine.new_zeros(max(sizes), *mine.shape[1:])
    padded[: len(mine)] = mine
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One after the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def agreed(value: float) -> float:
    """The first rank's."""
    if not dist.is_initialized():
        return value
    found = [value]
    dist.broadcast_object_list(found)
    return found[0]


def least_over_ranks(value: Tensor) -> int:
    """The least of each rank's value."""
    if dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.MIN)
    return int(value)


def all_gather(mine: Tensor) -> Tensor:
    """Each rank's values one after the other, all (K,); alone, what is mine."""
    if not dist.is_initialized():
        return mine
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    return torch.cat(gathered)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of each rank's values, in place; alone, the values."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
