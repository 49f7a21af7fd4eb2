"""Embedding resets: every epoch but the first begins with the initial embedding tables.

A click model overfits as soon as it meets a row again: the tables know its label, and the dense
layers learn to trust them. So each epoch begins with the tables and their optimizers as the run
began, while the dense layers keep what they have learned: within an epoch every row is new to the
tables. This is MEDA (Liu et al. 2023, "Multi-Epoch Learning for Deep Click-Through Rate Prediction
Models"), except that the rows return to their own first values instead of new random ones: what the
dense layers know of a column still holds.
"""

from collections.abc import Iterable

import pytorch_lightning as pl
import torch
from torch import nn

from training.loop.warm_start import WarmStart
from training.models.dlrm import DLRM
from training.models.embedding_tables import Tables
from training.optim.embedding_optimizers import EmbeddingOptimizer


class EmbeddingReset(pl.Callback):
    """Resets the embedding tables at the beginning of each epoch but the first.

    Args:
        model: The model whose tables are reset.
        optimizers: The sparse optimizer of each group of tables.
        warm_start: The bundle that the tables' first values come from, if any.
    """

    def __init__(
        self, model: DLRM, optimizers: nn.ModuleList, warm_start: WarmStart | None
    ) -> None:
        self.model, self.optimizers, self.warm_start = model, optimizers, warm_start

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the tables. A run that resumes within an epoch takes them from the checkpoint."""
        if trainer.current_epoch == 0:
            return
        reset_embeddings(self.model.embeddings.tables, self.optimizers)
        if self.warm_start:
            self.warm_start.load_tables(self.model)


@torch.no_grad()
def reset_embeddings(tables: Iterable[nn.Module], optimizers: Iterable[nn.Module]) -> None:
    """Give tables their initial values and their optimizers an empty state.

    Args:
        tables: Groups of tables (`Tables`).
        optimizers: The `EmbeddingOptimizer` of each group.
    """
    for group, optimizer in zip(tables, optimizers, strict=True):
        assert isinstance(group, Tables)
        assert isinstance(optimizer, EmbeddingOptimizer)
        group.reset_parameters()
        optimizer.reset_parameters(group)
