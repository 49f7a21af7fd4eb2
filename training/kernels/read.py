"""The ids and lists of one feature in a table: the argument of the operators that pool lists.

Shapes: V values of all lists of a feature, N vectors that a read makes.
"""

from typing import NamedTuple

from torch import Tensor

POOLINGS = ("sum", "mean", "max")  # in the order of `Pooling` in embedding_ops.cpp


class Read(NamedTuple):
    """The lookups of one feature in one table.

    Attributes:
        table: Number of the table in its group.
        values: The ids from 0 in the table, (V,), int32 or int64.
        starts: Where each list starts, and the end of the last one, (N + 1,); None if each value is
            one vector.
        weights: The factor of each value, (V,), float32, for the pooling `sum` only; None for 1.
        pooling: One of POOLINGS; None without `starts`.
    """

    table: int
    values: Tensor
    starts: Tensor | None = None
    weights: Tensor | None = None
    pooling: str | None = None
