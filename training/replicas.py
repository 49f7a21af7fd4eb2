"""What data-parallel ranks tell each other beside the dense gradients, which Lightning's DDP averages."""

import torch
import torch.distributed as dist
from torch import Tensor

from training.batches import share


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


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of each rank's values, in place; alone, the values."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
