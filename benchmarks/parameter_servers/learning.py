"""Trains a real model as a simulated schedule says, in one process.

The gradient of a step is computed from the table rows as the servers had them when they read them,
and from the dense layers that the worker had then. It is applied when the schedule says so.

Shapes: B batch, F tables, D embedding dim, R rows of all tables, U distinct rows of a batch.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.config.params import Params
from features.encode.feature_state import FeatureState
from training.loop.batches import Rows
from training.loop.losses import logloss
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables
from training.models.factory import build_model
from training.optim.dense_optimizers import make_dense_optimizer
from training.optim.embedding_optimizers import add_rows, make_embedding_optimizer

VALID_BATCH = 8192


class _Step:
    """The inputs and gradients of a step on its worker.

    Attributes:
        rows_U: The distinct rows of the batch, ordered by their server.
        place_K: The place of each of the K = B F ids of the batch in rows_U.
        parts: The part of rows_U that each server has.
        weight_UD: The rows, as the servers have read them.
        dense: The dense layers of the centre, with dense_every 1.
        grad_UD: The summed gradients of the rows.
        dense_grads: The gradients of the dense layers, with dense_every 1.
        num_open: How many updates are missing.
    """

    def __init__(
        self, row_numbers_K: Tensor, num_servers: int, dim: int, *, pushes_dense: bool
    ) -> None:
        distinct_U, place_K = torch.unique(row_numbers_K, return_inverse=True)
        order_U = (distinct_U % num_servers).argsort(stable=True)
        inverse_U = torch.empty_like(order_U)
        inverse_U[order_U] = torch.arange(len(order_U))
        self.rows_U, self.place_K = distinct_U[order_U], inverse_U[place_K]
        sizes = torch.bincount(self.rows_U % num_servers, minlength=num_servers)
        ends = [0, *sizes.cumsum(0).tolist()]
        self.parts = [slice(start, end) for start, end in pairwise(ends)]
        self.weight_UD = torch.empty(len(self.rows_U), dim)
        self.dense: Sequence[Tensor] = ()
        self.grad_UD = torch.empty(0)
        self.dense_grads: Sequence[Tensor] = ()
        self.num_open = sum(part.start < part.stop for part in self.parts) + pushes_dense


class _Replica(NamedTuple):
    """The dense layers of a worker, with dense_every above 1.

    Attributes:
        weights: The weights, which the worker trains.
        optimizer: Its own optimizer.
        base: The centre as it was at the last exchange.
    """

    weights: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    base: list[Tensor]


class Learning:
    """The steps of a real training: the `Work` of a simulation.

    The weights begin as those of the train stage, and a batch is that of its ticket. There is one
    epoch, and no averaging of weights.

    Args:
        params: The parameters.
        model: The model with its first weights; it is trained.
        batches: The batch of each ticket.
        num_workers: W.
        num_servers: S; row r of all tables is on server r mod S.
        dense_every: As in `Setting`.
    """

    def __init__(
        self,
        params: Params,
        model: DLRM,
        batches: Sequence[Rows],
        num_workers: int,
        num_servers: int,
        dense_every: int,
    ) -> None:
        self.model, self.batches = model, batches
        self.num_workers, self.num_servers = num_workers, num_servers
        self.dense_every = dense_every
        (tables,) = model.embeddings.tables  # full tables without lists
        assert isinstance(tables, EmbeddingTables)
        self.tables = tables
        # for the optimizer the rows of all servers are one table, so that a row is its number
        self.all_rows = EmbeddingTables([tables.num_rows], tables.embedding_dim, torch.Generator())
        self.all_rows.weight = tables.weight
        self.embedding_optimizer = make_embedding_optimizer(
            params.train.embedding_optimizer.name, self.all_rows
        )
        self.embedding_lr = params.train.embedding_optimizer.lr
        self.dense = [weight for weight in model.parameters() if weight.requires_grad]
        self.centre = _copied(self.dense)
        self.dense_optimizer = make_dense_optimizer(params.train.dense_optimizer, self.centre)
        self.replicas = []
        for _ in range(num_workers if dense_every > 1 else 0):
            weights = _copied(self.dense)
            optimizer = make_dense_optimizer(params.train.dense_optimizer, weights)
            base = [weight.detach().clone() for weight in weights]
            self.replicas.append(_Replica(weights, optimizer, base))
        self.steps: dict[int, _Step] = {}  # those that have begun and have not been applied

    def rows(self, ticket: int) -> Sequence[int]:
        numbers_K = self.tables.row_numbers(self.batches[ticket].ids).flatten()
        step = self.steps[ticket] = _Step(
            numbers_K,
            self.num_servers,
            self.tables.embedding_dim,
            pushes_dense=self.dense_every == 1,
        )
        return [part.stop - part.start for part in step.parts]

    @torch.no_grad()
    def read(self, ticket: int, server: int) -> None:
        step = self.steps[ticket]
        part = step.parts[server]
        step.weight_UD[part] = self.tables.weight[step.rows_U[part]]

    @torch.no_grad()
    def read_dense(self, ticket: int) -> None:
        self.steps[ticket].dense = [weight.clone() for weight in self.centre]

    def compute(self, ticket: int, worker: int) -> None:
        step, batch = self.steps[ticket], self.batches[ticket]
        replica = self.replicas[worker] if self.replicas else None
        self._use_dense(step.dense if replica is None else replica.weights)
        for weight in self.dense:
            weight.grad = None
        leaf_BFD = step.weight_UD[step.place_K].view(*batch.ids.shape, -1).requires_grad_()
        logits_B = self.model.logits(batch.dense, [leaf_BFD])
        loss = logloss(logits_B, batch.labels) / len(batch.labels)
        loss.backward()
        assert leaf_BFD.grad is not None
        step.grad_UD = add_rows(
            torch.zeros_like(step.weight_UD), step.place_K, leaf_BFD.grad.flatten(0, 1)
        )
        grads = [weight.grad for weight in self.dense if weight.grad is not None]
        if replica is None:
            step.dense_grads = grads
        else:
            _step(replica.optimizer, replica.weights, grads)

    def update(self, ticket: int, server: int) -> None:
        step = self.steps[ticket]
        part = step.parts[server]
        self.embedding_optimizer.step(
            self.all_rows,
            step.rows_U[part].unsqueeze(1),
            step.grad_UD[part].unsqueeze(1),
            self.embedding_lr,
        )
        self._updated(ticket)

    def update_dense(self, ticket: int) -> None:
        _step(self.dense_optimizer, self.centre, self.steps[ticket].dense_grads)
        self._updated(ticket)

    def _updated(self, ticket: int) -> None:
        """Free the memory of a step that has been applied."""
        step = self.steps[ticket]
        step.num_open -= 1
        if not step.num_open:
            del self.steps[ticket]

    @torch.no_grad()
    def exchange(self, worker: int) -> None:
        replica = self.replicas[worker]
        progress = torch._foreach_sub(replica.weights, replica.base)
        torch._foreach_add_(self.centre, progress, alpha=1 / self.num_workers)
        torch._foreach_copy_(replica.weights, self.centre)
        torch._foreach_copy_(replica.base, self.centre)

    def finish(self) -> None:
        """Give the centre what the workers have learned since their last exchange."""
        for worker in range(len(self.replicas)):
            self.exchange(worker)
        self._use_dense(self.centre)

    def logloss_of(self, batches: Sequence[Rows]) -> float:
        """Return the mean logloss of the rows of some batches, with the centre as it is now."""
        self._use_dense(self.centre)
        return logloss_of(self.model, batches)

    @torch.no_grad()
    def _use_dense(self, weights: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self.dense, list(weights))


def make_model(params: Params, state: FeatureState, some_dense: Tensor) -> DLRM:
    """Return the model of the parameters with its first weights.

    Args:
        params: The parameters.
        state: The feature state.
        some_dense: Dense columns to standardise by (`Batches.some_dense`).
    """
    generator = torch.Generator().manual_seed(params.train.seed)
    num_dense = len(state.schema.dense_features)
    model = build_model(params.model, state.cardinalities, num_dense, generator)
    if params.model.standardise:
        model.standardise.fit(some_dense)
    return model


@torch.no_grad()
def logloss_of(model: DLRM, batches: Sequence[Rows]) -> float:
    """Return the mean logloss of a model on the rows of some batches."""
    losses = [
        logloss(model(rows.dense, rows.ids).double(), rows.labels.double()) for rows in batches
    ]
    return float(sum(losses)) / sum(len(rows.labels) for rows in batches)


def _copied(weights: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [copy.deepcopy(weight) for weight in weights]


def _step(
    optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter], grads: Sequence[Tensor]
) -> None:
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad
    optimizer.step()
