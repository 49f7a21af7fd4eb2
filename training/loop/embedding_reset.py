"""Several passes over the rows, of which the tables remember the last alone.

A click model overfits as soon as it meets a row again: the tables know its label, and the dense layers learn to trust them. So each pass
but the first begins with the tables and their optimizers as the run began, while the dense layers go on: within a pass every row is new
to the tables. This is MEDA (Liu et al. 2023, "Multi-Epoch Learning for Deep Click-Through Rate Prediction Models"), but that the rows
start from their own first values again and not from new ones: what the dense layers know of a column still holds.
"""

from collections.abc import Iterable

import torch
from torch import nn

from training.models.embedding_tables import Tables
from training.optim.embedding_optimizers import EmbeddingOptimizer


@torch.no_grad()
def restart(tables: Iterable[nn.Module], optimizers: Iterable[nn.Module]) -> None:
    """tables: of Tables; optimizers: a EmbeddingOptimizer for each of them, whose state is 0 at first."""
    for each, optimizer in zip(tables, optimizers, strict=True):
        assert isinstance(each, Tables)
        assert isinstance(optimizer, EmbeddingOptimizer)
        each.reset_parameters()
        optimizer.reset_parameters(each)
