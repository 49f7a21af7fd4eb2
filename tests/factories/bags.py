"""Random lists of ids, as the batches of features with several values have them."""

import torch

from training.models.bags import Bag


def random_bag(
    num_ids: int, num_rows: int, seed: int, *, weighted: bool = False, longest: int = 5
) -> Bag:
    """Return lists of 0 to `longest` ids; small ids are frequent, so ids repeat, also in a list."""
    generator = torch.Generator().manual_seed(seed)
    lengths_B = torch.randint(0, longest + 1, (num_rows,), generator=generator)
    starts = torch.zeros(num_rows + 1, dtype=torch.int64)
    starts[1:] = lengths_B.cumsum(0)
    num_values = int(starts[-1])
    values = (torch.rand(num_values, generator=generator) ** 2 * num_ids).int()
    weights = torch.randn(num_values, generator=generator) if weighted else None
    return Bag(values, starts, weights)
