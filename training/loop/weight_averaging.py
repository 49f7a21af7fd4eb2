"""Averages of weights, which are what is validated and kept.

Within an epoch, of the dense layers, by polynomial decay (Shamir & Zhang 2013, "Stochastic Gradient Descent for Non-smooth
Optimization"): after k steps about the last k / (ETA + 1) count, so that no window has to be chosen for a batch size or a log. The
tables are left out: that would touch every row in every step, and with row-wise Adagrad their steps shrink by themselves.

Over epochs that each begin with the same tables (restarts.py), of all weights: what each epoch learned of its order of the rows alone
cancels out, as it does in a mean of several models' scores.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training.distributed.sharding.row_permutation import shards_of, zeros_like
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables, Tables

ETA = 8


def twin_of(model: DLRM) -> DLRM:
    """A model with the very same tables, and copies of all else that take no gradient."""
    twin = copy.deepcopy(model, {id(tables): tables for tables in model.embeddings.tables})
    return twin.requires_grad_(False)  # the tables never take one


@torch.no_grad()
def average(twin: DLRM, model: DLRM, step: int) -> None:
    """After this step of an epoch (from 0): a += (ETA + 1) / (step + ETA + 1) (w - a). The first one forgets all before it."""
    pairs = [
        (a, w) for a, w in zip(twin.parameters(), model.parameters(), strict=True) if a is not w
    ]
    torch._foreach_lerp_([a for a, _ in pairs], [w for _, w in pairs], (ETA + 1) / (step + ETA + 1))


class EpochMean(nn.Module):
    """The mean of a twin's weights as the epochs left them, all but the first: its dense layers had everything to learn.

    Sharded tables' means lie as they do, and are no weights of this module's, as they are none of the tables'.
    """

    def __init__(self, twin: DLRM) -> None:
        super().__init__()
        tables = _tables(twin)
        self.dense = nn.ParameterList(_zeros(weight) for weight in _dense(twin))
        self.rows = nn.ParameterList(
            _zeros(each.weight) for each in tables if isinstance(each, EmbeddingTables)
        )
        self.sharded = [
            {name: zeros_like(part) for name, part in each.parts().items()}
            for each in tables
            if not self.rows
        ]

    def parts(self, twin: DLRM) -> list[dict[str, Any]]:
        """For each of the twin's tables the mean of each part, named like it (Tables.parts); not copied."""
        whole = zip(_tables(twin), self.rows, strict=False)
        return [
            {f"{k}.weight": rows[a:b] for k, (a, b) in enumerate(tables.spans)}
            for tables, rows in whole
        ] or self.sharded

    @torch.no_grad()
    def take_in(self, twin: DLRM, epoch: int) -> None:
        """At the end of an epoch (from 1), the second or a later one: the twin, its tables too, gets the mean's weights."""
        weights = [*_dense(twin), *_rows(tables.parts() for tables in _tables(twin))]
        means = [*self.dense, *_rows(self.parts(twin))]
        torch._foreach_lerp_(means, weights, 1 / (epoch - 1))
        torch._foreach_copy_(weights, means)


def _zeros(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.zeros_like(weight), requires_grad=False)


def _tables(model: DLRM) -> list[Tables]:
    return [tables for tables in model.embeddings.tables if isinstance(tables, Tables)]


def _dense(model: DLRM) -> list[Tensor]:
    of_tables = {id(weight) for tables in _tables(model) for weight in tables.parameters()}
    return [weight for weight in model.parameters() if id(weight) not in of_tables]


def _rows(parts: Iterable[dict[str, Any]]) -> list[Tensor]:
    """Those that this rank has."""
    return [
        rows for of_tables in parts for part in of_tables.values() for _, rows in shards_of(part)
    ]
