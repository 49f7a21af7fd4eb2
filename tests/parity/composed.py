"""Helpers for tests of composed embeddings: random ids, tables as arrays, a training step."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from training.models.embedding_tables import EmbeddingTables
from training.models.embeddings import Embeddings
from training.optim.embedding_optimizers import EPS, make_embedding_optimizer


def arrays(tables: EmbeddingTables) -> list[np.ndarray]:
    """Return a copy of each table."""
    ends = [*tables.offsets.tolist(), len(tables.weight)]
    return [tables.weight.detach().numpy()[a:b].copy() for a, b in pairwise(ends)]


def draw_ids(cardinalities: Sequence[int], num_rows: int, seed: int) -> torch.Tensor:
    """Return random ids (num_rows, F). Small ids are frequent, so rows repeat."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(num_rows, len(cardinalities), generator=generator) ** 2
        * torch.tensor(cardinalities)
    ).int()


def train_step(
    tested: Embeddings,
    optimizers: Sequence[torch.nn.Module],
    ids: torch.Tensor,
    upstream: np.ndarray,
    lr: float,
) -> None:
    """Update the tables for a loss with a given gradient.

    Args:
        tested: The embeddings.
        optimizers: The optimizer of each group of tables.
        ids: (B, F).
        upstream: Gradient of the loss with respect to the output of `combine`, (B, F, D).
        lr: Learning rate.
    """
    ids_of_groups = tested.ids(ids)
    rows = [rows_k.requires_grad_() for rows_k in tested.lookup(ids_of_groups)]
    (tested.combine(rows) * torch.tensor(upstream)).sum().backward()
    for tables, optimizer, ids_k, rows_k in zip(
        tested.tables, optimizers, ids_of_groups, rows, strict=True
    ):
        optimizer.step(tables, ids_k, rows_k.grad, lr)


def optimizers_of(tested: Embeddings, name: str) -> list[torch.nn.Module]:
    """Return an embedding optimizer for each group of tables."""
    return [make_embedding_optimizer(name, tables) for tables in tested.tables]


class PlainTable:
    """A table and its optimizer, by the definition: it first adds up the gradients of each row."""

    def __init__(self, weight: np.ndarray, optimizer: str) -> None:
        self.weight, self.optimizer, self.squares = weight, optimizer, np.zeros(len(weight))

    def step(self, rows: np.ndarray, grads: np.ndarray, lr: float) -> None:
        """Update the table with the gradients `grads` (B, d) of the row numbers `rows` (B,)."""
        for row in np.unique(rows):
            total = grads[rows == row].sum(axis=0)
            self.squares[row] += (total**2).mean()
            scale = 1.0 if self.optimizer == "sgd" else np.sqrt(self.squares[row]) + EPS
            self.weight[row] -= lr * total / scale
