"""Bags: the ids of a feature that has several values in each row.

Shapes: R rows, V values of all rows together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def starts_of(lengths: Tensor) -> Tensor:
    """Return where each of R lists starts, and the end of the last one, (R + 1,), int64.

    Args:
        lengths: The number of values of each list (R,), int64.
    """
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


class Bag(NamedTuple):
    """The ids of R rows, one row after the other. A row may have none.

    Attributes:
        values: The ids of all rows (V,), int32, local to the feature's table.
        starts: Where the rows begin (R + 1,), int64: row r has values[starts[r]:starts[r + 1]].
        weights: The weights of the values (V,), float32; None if all are 1.
    """

    values: Tensor
    starts: Tensor
    weights: Tensor | None

    @property
    def num_rows(self) -> int:
        """The number of rows, R."""
        return len(self.starts) - 1

    def part(self, start: int, stop: int) -> "Bag":
        """Return the rows start .. stop - 1; their values are not copied."""
        starts = self.starts[start : max(start, stop) + 1]
        first, last = int(starts[0]), int(starts[-1])
        weights = None if self.weights is None else self.weights[first:last]
        return Bag(self.values[first:last], starts - first, weights)

    def take(self, rows: Tensor) -> "Bag":
        """Return some rows in a given order.

        Args:
            rows: The numbers of the rows, int64.
        """
        lengths = self.starts.diff()[rows]
        starts = starts_of(lengths)
        offsets = self.starts[rows] - starts[:-1]
        places = torch.arange(int(starts[-1])) + offsets.repeat_interleave(lengths)
        weights = None if self.weights is None else self.weights[places]
        return Bag(self.values[places], starts, weights)

    def copy(self) -> "Bag":
        """Copy the rows."""
        weights = None if self.weights is None else self.weights.clone()
        return Bag(self.values.clone(), self.starts.clone(), weights)

    def to(self, device: torch.device) -> "Bag":
        """Move the rows to a device."""
        weights = None if self.weights is None else self.weights.to(device)
        return Bag(self.values.to(device), self.starts.to(device), weights)

    @classmethod
    def concat(cls, bags: Sequence["Bag"]) -> "Bag":
        """Put the rows of several bags of a feature one after the other; at least one bag."""
        if len(bags) == 1:
            return bags[0]
        starts, end = [bags[0].starts[:1]], 0
        for bag in bags:
            starts.append(bag.starts[1:] + end)
            end += len(bag.values)
        weights = [bag.weights for bag in bags if bag.weights is not None]
        return cls(
            torch.cat([bag.values for bag in bags]),
            torch.cat(starts),
            torch.cat(weights) if weights else None,
        )
