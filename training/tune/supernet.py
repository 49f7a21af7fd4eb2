"""A model with shared weights for all dims of its embedding tables.

In each training step every table gets a random dim d, and the numbers of its vectors from d on are
zero. So the first numbers learn to do without the others, and one trained model tells which dims
are good: `Supernet.loss` masks its vectors and scores validation rows. This is the supernet of
OptEmbed (Lyu et al. 2022, arXiv:2208.04482), whose masks are prefixes, too.

Shapes: B rows of a block, F categorical features, T tables, D embedding dim.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.config.params import Params
from features.schema.schema import Schema
from training.evaluation.random_rows import random_rows
from training.loop.callbacks import RowProgress
from training.loop.diverged import Diverged
from training.loop.losses import logloss
from training.models.dlrm import DLRM
from training.models.factory import inputs_of
from training.stage import TrainingRun
from training.tune.evolution import Dims
from training.tune.trial import prepare_without_checkpoints

VALID_ROWS = 16_384
BLOCK_ROWS = 4096


def dim_choices(embedding_dim: int) -> list[int]:
    """Return the dims to choose from: 0, the powers of two from 2 on, and D."""
    powers = [2**k for k in range(1, embedding_dim.bit_length()) if 2**k < embedding_dim]
    return [0, *powers, embedding_dim]


class RandomDims:
    """A hook before the interaction that masks the vectors: a random dim for each table and step.

    Args:
        table_of_feature: The table of each feature, (F,).
        embedding_dim: D.
        seed: The seed of the dims.
    """

    def __init__(self, table_of_feature: Sequence[int], embedding_dim: int, seed: int) -> None:
        self.table_of_feature = np.array(table_of_feature)
        self.choices = np.array(dim_choices(embedding_dim))
        self.random = np.random.default_rng(seed)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments of an interaction; in training, with masked vectors."""
        if not module.training:
            return args
        bottom_BD, vectors_BFD = args
        num_tables = self.table_of_feature.max() + 1
        dims_T = self.random.choice(self.choices, num_tables)
        mask_FD = prefix_mask(dims_T[self.table_of_feature].tolist(), vectors_BFD.shape[2])
        return bottom_BD, vectors_BFD * mask_FD.to(vectors_BFD.device)


def prefix_mask(dims: Sequence[int], embedding_dim: int) -> Tensor:
    """Return (F, D) with ones before the dim of each feature, and zeros from it on."""
    return (torch.arange(embedding_dim) < torch.tensor(dims).unsqueeze(1)).float()


class Supernet:
    """The trained model and the validation rows that it scores.

    Args:
        model: The trained model.
        run: The run that has trained it.
    """

    def __init__(self, model: DLRM, run: TrainingRun) -> None:
        schema = run.state.schema
        self.model = model.to("cpu").eval()
        self.table_of_feature = tables_of(schema)
        self.rows = random_rows(run.features, schema, "valid", VALID_ROWS, run.params.train.seed)
        starts = range(0, len(self.rows.labels), BLOCK_ROWS)
        self.blocks = [
            self.rows.part(start, min(start + BLOCK_ROWS, len(self.rows.labels)))
            for start in starts
        ]
        # What no dim changes is computed once.
        self.vectors, self.bottoms = [], []
        with torch.inference_mode():
            for block in self.blocks:
                self.vectors.append(self.model.categorical_vectors(block.ids, block.bags))
                self.bottoms.append(self.model.bottom_vector(block.dense))

    @property
    def num_rows(self) -> int:
        """The number of validation rows that are scored for each loss."""
        return len(self.rows.labels)

    @torch.inference_mode()
    def loss(self, dims: Dims) -> float:
        """Return the logloss of the validation rows with the dim of each table, (T,)."""
        embedding_dim = self.vectors[0].shape[2]
        mask_FD = prefix_mask([dims[table] for table in self.table_of_feature], embedding_dim)
        loss_sum = 0.0
        for block, vectors_BFD, bottom_BD in zip(
            self.blocks, self.vectors, self.bottoms, strict=True
        ):
            logits_B = self.model.combine(bottom_BD, vectors_BFD * mask_FD)
            loss_sum += logloss(logits_B, block.labels, block.weights).double().item()
        weights = self.rows.weights
        return loss_sum / (self.num_rows if weights is None else max(weights.sum().item(), 1e-9))


def tables_of(schema: Schema) -> list[int]:
    """Return the number of the table of each categorical feature, (F,)."""
    return [table for table in inputs_of(schema).tables if table is not None]


def train_supernet(params: Params, root: Path) -> Supernet:
    """Train the shared weights on root/artifacts/features.

    Args:
        params: The parameters; `model.tables` is full.
        root: The project folder.

    Raises:
        ConfigError: The training diverged, or the model does not fit into memory.
        DataError: A feature file is damaged.
    """
    run = prepare_without_checkpoints(params, root)
    module = run.module
    hook = RandomDims(tables_of(run.state.schema), params.model.embedding_dim, params.train.seed)
    handle = module.model.interaction.register_forward_pre_hook(hook)
    progress = RowProgress(
        None, run.data.train_batches(), module.schedule.num_steps, stage="supernet"
    )
    trainer = run.make_trainer([progress], logger=False)
    try:
        trainer.fit(module, datamodule=run.data)
    except Diverged as diverged:
        raise diverged.as_config_error(
            params.train, module.schedule.num_steps, trainer.global_step
        ) from None
    handle.remove()
    return Supernet(module.exported_model, run)
