"""Exchanges between data-parallel ranks, beside the dense gradients that DDP averages.

Without torch.distributed, in a run of one process, each function returns this process's own values.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(local: Tensor, num_rows: int) -> Tensor:
    """Concatenate each rank's share of the rows of a global batch, in rank order.

    The shares differ by one row at most. gloo gathers tensors of equal shape only, so the shorter
    ones are padded on the way.

    Args:
        local: This rank's share of the rows.
        num_rows: Rows of the global batch.

    Returns:
        (num_rows, ...).
    """
    if not dist.is_initialized():
        return local
    num_ranks = dist.get_world_size()
    shares = [share(num_rows, rank, num_ranks) for rank in range(num_ranks)]
    sizes = [rows.stop - rows.start for rows in shares]
    padded = local.new_zeros(max(sizes), *local.shape[1:])
    padded[: len(local)] = local
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def gather_uneven(local: Tensor) -> Tensor:
    """Concatenate all ranks' tensors (K, ...), in rank order; K differs from rank to rank."""
    if not dist.is_initialized():
        return local
    sizes = all_gather(torch.tensor([len(local)], device=local.device)).tolist()
    padded = local.new_zeros(max(sizes), *local.shape[1:])
    padded[: len(local)] = local
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors along the first dimension. A single one is returned without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def broadcast_value(value: float) -> float:
    """Return the first rank's value on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def min_over_ranks(value: Tensor) -> int:
    """Return the smallest of all ranks' values, integers (). The tensor is overwritten."""
    if dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.MIN)
    return int(value)


def all_gather(local: Tensor) -> Tensor:
    """Concatenate all ranks' tensors, which have the same shape (K, ...), in rank order."""
    if not dist.is_initialized():
        return local
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, local)
    return torch.cat(gathered)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add all ranks' tensors, which have the same shape, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def share(num_rows: int, rank: int, world_size: int) -> slice:
    """Return the part of num_rows rows that a rank takes; parts differ by one row at most."""
    return slice(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)
