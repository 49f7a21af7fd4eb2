"""Averages of weights, which are what is validated and exported.

Within an epoch, the dense layers are averaged by polynomial decay (Shamir & Zhang 2013, "Stochastic
Gradient Descent for Non-smooth Optimization"): after k steps about the last k / (ETA + 1) of them
count, so that no window has to be chosen for a batch size or a log. The embedding tables are left
out: averaging them would touch every row in every step, and with row-wise Adagrad their steps
shrink anyway.

Over epochs that each begin with the same tables (training/loop/embedding_reset.py), all weights are
averaged: what each epoch learned only of its own order of the rows cancels out, as in a mean of
several models' scores.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.distributed.sharding.row_permutation import shards_of, zeros_like
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables, Tables

ETA = 8


def averaged_model_of(model: DLRM) -> DLRM:
    """Return a model with the same tables, and copies of all other weights."""
    averaged = copy.deepcopy(model, {id(tables): tables for tables in model.embeddings.tables})
    return averaged.requires_grad_(False)  # the tables take none in the model either


@torch.no_grad()
def average(averaged_model: DLRM, model: DLRM, step: int) -> None:
    """Update the averaged dense weights: a += (ETA + 1) / (step + ETA + 1) (w - a).

    Args:
        averaged_model: The model with the averages a.
        model: The model with the weights w.
        step: The step in the epoch, from 0; the first one replaces the averages.
    """
    pairs = [
        (a, w)
        for a, w in zip(averaged_model.parameters(), model.parameters(), strict=True)
        if a is not w
    ]
    torch._foreach_lerp_([a for a, _ in pairs], [w for _, w in pairs], (ETA + 1) / (step + ETA + 1))


class EpochMean(nn.Module):
    """The mean of an averaged model's weights over the ends of epochs.

    The first epoch is left out, because its dense layers had everything to learn. The means of
    sharded tables lie on the ranks as the tables do, and are no parameters of this module, as the
    tables are none of theirs.
    """

    def __init__(self, averaged_model: DLRM) -> None:
        super().__init__()
        self.dense = nn.ParameterList(_zeros(weight) for weight in dense_weights(averaged_model))
        self._make_rows(averaged_model)

    def _make_rows(self, averaged_model: DLRM) -> None:
        tables = _tables(averaged_model)
        self.rows = nn.ParameterList(
            _zeros(each.weight) for each in tables if isinstance(each, EmbeddingTables)
        )
        self.sharded = [
            {name: zeros_like(part) for name, part in each.parts().items()}
            for each in tables
            if not self.rows
        ]

    def parts(self, averaged_model: DLRM) -> list[dict[str, Any]]:
        """Return the means of each group of tables, named as in `Tables.parts`, without a copy."""
        whole = zip(_tables(averaged_model), self.rows, strict=False)
        return [
            {f"{k}.weight": rows[a:b] for k, (a, b) in enumerate(tables.spans)}
            for tables, rows in whole
        ] or self.sharded

    @torch.no_grad()
    def update(self, averaged_model: DLRM, epoch: int) -> None:
        """Add the weights of an epoch's end to the mean, and copy the mean to the averaged model.

        Args:
            averaged_model: The model whose weights are averaged.
            epoch: The epoch that ends, from 1; the second one is the first that counts.
        """
        rows = _rows(tables.parts() for tables in _tables(averaged_model))
        _update_means(_rows(self.parts(averaged_model)), rows, epoch)
        self._update_dense(averaged_model, epoch)

    def _update_dense(self, averaged_model: DLRM, epoch: int) -> None:
        _update_means(list(self.dense), dense_weights(averaged_model), epoch)


def _zeros(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.zeros_like(weight), requires_grad=False)


def _tables(model: DLRM) -> list[Tables]:
    return [tables for tables in model.embeddings.tables if isinstance(tables, Tables)]


def dense_weights(model: DLRM) -> list[nn.Parameter]:
    """Return all weights but those of the tables; those of an averaged model take no gradients."""
    of_tables = {id(weight) for tables in _tables(model) for weight in tables.parameters()}
    return [weight for weight in model.parameters() if id(weight) not in of_tables]


def _update_means(means: Sequence[Tensor], weights: Sequence[Tensor], epoch: int) -> None:
    """Add the weights of an epoch's end to the means, and copy the means to the weights."""
    torch._foreach_lerp_(list(means), list(weights), 1 / (epoch - 1))
    torch._foreach_copy_(list(weights), list(means))


def _rows(parts: Iterable[dict[str, Any]]) -> list[Tensor]:
    """Return the rows of the parts that this rank has."""
    return [
        rows for of_tables in parts for part in of_tables.values() for _, rows in shards_of(part)
    ]
