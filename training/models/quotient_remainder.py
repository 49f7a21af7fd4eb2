"""Quotient-remainder embeddings (Shi et al. 2020, arXiv:1909.02107).

The vector of a value of a large categorical feature is composed of one row each of two small
tables.

Shapes: B batch, F categorical features, K composed features, D embedding dim, n values of a
feature, c collisions.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from common.numbers import ceil_div
from training.models.embedding_tables import EmbeddingTables, MakeTables
from training.models.embeddings import Place
from training.models.grouped_embeddings import GroupedEmbeddings

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mult": torch.mul,
    "add": torch.add,
    "concat": lambda quotients, remainders: torch.cat([quotients, remainders], dim=-1),
}


class QuotientRemainderTables(GroupedEmbeddings):
    """Composes value i of a large feature from row i // c of one table and row i mod c of another.

    The first table has ceil(n / c) rows, the second c rows. No two values share both rows. A
    feature of at most `threshold` values has a full table; at least one feature must be above the
    threshold.

    Args:
        cardinalities: Number of values of each feature.
        embedding_dim: D.
        generator: Draws the initial weights.
        make_tables: Makes the tables of one dim.
        operation: `mult` or `add` of two rows of D, or `concat` of two rows of D / 2.
        collisions: c.
        threshold: Number of values above which a feature is composed.
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
        self.composed = composed
        self.operation_name, self.operation = operation, OPERATIONS[operation]
        self.collisions = collisions
        num_values = [cardinalities[column] for column in composed]
        quotient_rows = [ceil_div(n, collisions) for n in num_values]
        remainder_rows = [collisions] * len(composed)
        bounds = [initial_bound(operation, n) for n in num_values]
        composed_tables = make_tables(
            [*quotient_rows, *remainder_rows],
            embedding_dim // 2 if operation == "concat" else embedding_dim,
            generator,
            [*bounds, *bounds],
        )
        self.tables = nn.ModuleList([composed_tables])
        if full:
            full_tables = make_tables(
                [cardinalities[column] for column in full], embedding_dim, generator
            )
            self.tables.insert(0, full_tables)

    def ids(self, ids_BF: Tensor) -> list[Tensor]:
        """Return the ids of the full tables, if there are any, and of the composed ones (B, 2 K).

        The first K columns of the latter are the quotients, the other K the remainders.
        """
        *full, composed_BK = self.split_columns(ids_BF)
        quotients_BK = composed_BK // self.collisions
        remainders_BK = composed_BK % self.collisions
        return [*full, torch.cat([quotients_BK, remainders_BK], dim=1)]

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        *full, composed = rows
        quotients, remainders = composed.chunk(2, dim=1)
        return self.merge_columns([*full, self.operation(quotients, remainders)])

    def places(self, table: int) -> list[Place]:
        group, number = self.place_of[table]
        if not self.is_composed(table):
            return [Place(group, number)]
        return [Place(group, number), Place(group, len(self.composed) + number)]

    def split_ids(self, table: int, ids: Tensor) -> list[Tensor]:
        if not self.is_composed(table):
            return [ids]
        return [ids // self.collisions, ids % self.collisions]

    def pools_rows(self, pooling: str) -> bool:
        return super().pools_rows(pooling) and self.operation_name != "mult"

    def is_composed(self, table: int) -> bool:
        return table in self.composed

    def compose(self, table: int, rows: Sequence[Tensor]) -> Tensor:
        if not self.is_composed(table):
            return rows[0]
        quotients, remainders = rows
        return self.operation(quotients, remainders)


def initial_bound(operation: str, num_values: int) -> float:
    """Return b of U(-b, b), from which both tables of a feature of n values are drawn.

    A composed vector shall start with the variance of a full table, which is drawn from
    U(-sqrt(1/n), sqrt(1/n)) and has the variance 1/(3n). U(-b, b) has the mean 0 and the variance
    b^2/3. The two rows are independent, so the variance of their sum is the sum of the variances,
    and that of their product the product: 2 b^2/3 = 1/(3n) for `add`, (b^2/3)^2 = 1/(3n) for
    `mult`. `concat` changes no value.
    """
    n = num_values
    return {
        "mult": math.sqrt(math.sqrt(3 / n)),
        "add": math.sqrt(1 / (2 * n)),
        "concat": math.sqrt(1 / n),
    }[operation]
