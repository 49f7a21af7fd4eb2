"""Quotient-remainder embeddings (Shi et al. 2020, arXiv:1909.02107): a large column's vectors are composed of two small tables' rows.

Shapes: B batch, F categorical fields, D embedding dim, n values of a column, c collisions.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from training.models.embedding_tables import EmbeddingTables, MakeTables
from training.models.grouped_embeddings import GroupedEmbeddings

COMPOSE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mult": torch.mul,
    "add": torch.add,
    "concat": lambda quotients, remainders: torch.cat([quotients, remainders], dim=-1),
}


class QuotientRemainderTables(GroupedEmbeddings):
    """Value i of a column of n > threshold values is row i // c of a table of ceil(n / c) rows with row i mod c of one of c rows.

    No two values share both rows. operation: mult or add of two rows of D, or concat of two of D / 2. Other columns have full tables;
    at least one column must be above the threshold.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        generator: torch.Generator,
        make_tables: MakeTables = EmbeddingTables,
        *,
        operation: str,
        collisions: int,
        threshold: int,
    ) -> None:
        full = [column for column, values in enumerate(cardinalities) if values <= threshold]
        composed = [column for column, values in enumerate(cardinalities) if values > threshold]
        super().__init__([full, composed] if full else [composed])
        self.compose, self.collisions = COMPOSE[operation], collisions
        values = [cardinalities[column] for column in composed]
        rows = [-(-n // collisions) for n in values] + [collisions] * len(values)
        bounds = 2 * [initial_bound(operation, n) for n in values]
        parts = make_tables(
            rows, embedding_dim // 2 if operation == "concat" else embedding_dim, generator, bounds
        )
        self.tables = nn.ModuleList([parts])
        if full:
            self.tables.insert(
                0, make_tables([cardinalities[column] for column in full], embedding_dim, generator)
            )

    def ids(self, ids_BF: Tensor) -> list[Tensor]:
        """Of the full tables, where there are some; then the quotients and, behind them, the remainders of the composed columns."""
        *full, composed_BK = self.split(ids_BF)
        return [
            *full,
            torch.cat([composed_BK // self.collisions, composed_BK % self.collisions], dim=1),
        ]

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        *full, parts = rows
        quotients, remainders = parts.chunk(2, dim=1)
        return self.in_order([*full, self.compose(quotients, remainders)])


def initial_bound(operation: str, num_values: int) -> float:
    """b of the U(-b, b) that both parts of a column of n values start from.

    A full table starts as U(-sqrt(1/n), sqrt(1/n)), of variance 1/(3n), and so shall what is composed. U(-b, b) has the variance b^2/3
    and the mean 0, the parts are independent, and so the variance of a sum is the sum of the variances, and of a product the product:
    2 b^2/3 = 1/(3n) for add, (b^2/3)^2 = 1/(3n) for mult. What is concatenated stays as it is.
    """
    n = num_values
    return {
        "mult": math.sqrt(math.sqrt(3 / n)),
        "add": math.sqrt(1 / (2 * n)),
        "concat": math.sqrt(1 / n),
    }[operation]
