"""What the tests of embeddings made of parts share: numbers drawn for them, and the parts as plain arrays."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from training.models.embedding_tables import EmbeddingTables
from training.models.embeddings import Embeddings
from training.optim.embedding_optimizers import EPS, make_embedding_optimizer


def arrays(tables: EmbeddingTables) -> list[np.ndarray]:
    """Each table by itself, copied."""
    ends = [*tables.offsets.tolist(), len(tables.weight)]
    return [tables.weight.detach().numpy()[a:b].copy() for a, b in pairwise(ends)]


def draw_ids(cardinalities: Sequence[int], num_rows: int, seed: int) -> torch.Tensor:
    """Skewed, so that values repeat; every value of a column within reach."""
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
    """A step of the tables for a loss whose gradient with respect to combine's output is upstream (B, F, D)."""
    looked_up = tested.ids(ids)
    rows = [rows_k.requires_grad_() for rows_k in tested.lookup(looked_up)]
    (tested.combine(rows) * torch.tensor(upstream)).sum().backward()
    for tables, optimizer, ids_k, rows_k in zip(
        tested.tables, optimizers, looked_up, rows, strict=True
    ):
        optimizer.step(tables, ids_k, rows_k.grad, lr)


def optimizers_of(tested: Embeddings, name: str) -> list[torch.nn.Module]:
    return [make_embedding_optimizer(name, tables) for tables in tested.tables]


class PlainTable:
    """A table, and a step by the definition: a row's gradients are summed first."""

    def __init__(self, weight: np.ndarray, optimizer: str) -> None:
        self.weight, self.optimizer, self.squares = weight, optimizer, np.zeros(len(weight))

    def step(self, rows: np.ndarray, grads: np.ndarray, lr: float) -> None:
        """rows (B,), grads (B, d)."""
        for row in np.unique(rows):
            total = grads[rows == row].sum(axis=0)
            self.squares[row] += (total**2).mean()
            self.weight[row] -= (
                lr * total / (1 if self.optimizer == "sgd" else np.sqrt(self.squares[row]) + EPS)
            )
