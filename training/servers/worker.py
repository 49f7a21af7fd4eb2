"""A worker: an actor that computes the gradients of steps, with rows that it pulls.

Shapes: U distinct rows of a step, D embedding dim, S table servers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.artifact import Artifact
from common.bundle_layout import STATE
from common.config.params import Params
from common.layout import FEATURES
from features.encode.feature_state import FeatureState
from training.distillation import teacher_scores
from training.loop.batches import Batch, KeptPools
from training.loop.diverged import Diverged
from training.loop.feature_batches import FeatureBatches
from training.loop.losses import logloss
from training.loop.schedule import lr_factor
from training.loop.step_loss import StepLoss, loss_to_minimise
from training.loop.training_curves import RunningMetrics
from training.loop.weight_averaging import dense_weights
from training.models.factory import make_model
from training.optim.dense_optimizers import make_dense_optimizer
from training.optim.gradient_clipping import clip_gradients
from training.servers.coordinator import StepRecord, Stretch
from training.servers.dense_server import (
    Floats,
    flatten,
    load_optimizer_state,
    optimizer_state_of,
    set_lr,
    unflatten,
)
from training.servers.engine import Actor, Pending
from training.servers.pulled_rows import PulledRows, Wanted
from training.servers.row_placement import RowPlacement, joined, of_servers
from training.servers.table_server import tensor_of


class Peers(NamedTuple):
    """The actors that a worker calls.

    Attributes:
        coordinator: The coordinator.
        dense: The dense server.
        tables: The table servers, by number.
    """

    coordinator: Actor
    dense: Actor
    tables: Sequence[Actor]


class Scores(NamedTuple):
    """The scores of a batch of validation rows.

    Attributes:
        loss_sum: The weighted logloss summed over the rows, a scalar.
        logits: The logits (B,).
        labels: The labels (B,).
        weights: The sample weights (B,); None if all are 1.
    """

    loss_sum: Any
    logits: Any
    labels: Any
    weights: Any


class Asked(NamedTuple):
    """A batch whose rows are on their way.

    Attributes:
        batch: The batch.
        wanted: The rows of each group of tables.
        indices: For each group and server which of the rows it has.
        places: For each server and group their places on it.
        pulls: The call of each server.
        dense: The call of the dense server; None if the worker has its own weights.
    """

    batch: Batch
    wanted: Sequence[Wanted]
    indices: Sequence[Sequence[Tensor]]
    places: Sequence[Sequence[NDArray[np.int64]]]
    pulls: Sequence[Pending]
    dense: Pending | None


class Worker:
    """Computes the gradients of steps.

    Args:
        params: The parameters of params.yaml.
        root: The directory with artifacts/.
        number: The number of the worker; one that replaces another has a new number.
        peers: The actors that it calls.
        num_steps: The number of steps of the run.
        standardise: The state of `model.standardise`, which is not trained.
    """

    def __init__(
        self,
        params: Params,
        root: Path,
        number: int,
        peers: Peers,
        num_steps: int,
        standardise: dict[str, NDArray[Any]],
    ) -> None:
        self.train_params, self.number, self.peers = params.train, number, peers
        self.num_steps = num_steps
        state = FeatureState.load(root / FEATURES / STATE)
        features = Artifact.open(root / FEATURES, is_checked=True)
        data = FeatureBatches(features, state.schema, params.train, teacher_scores(params, root))
        self.batches = data.train_batches(KeptPools)
        self.valid_batches = data.valid_batches()
        self.model = make_model(params, state, PulledRows)
        self.model.standardise.load_state_dict(
            {name: torch.tensor(values) for name, values in standardise.items()}
        )
        self.tables = [_as_pulled_rows(tables) for tables in self.model.embeddings.tables]
        num_servers = len(peers.tables)
        self.placements = [
            RowPlacement([end - start for start, end in tables.all_spans], num_servers)
            for tables in self.tables
        ]
        self.weights = dense_weights(self.model)
        self.metrics = RunningMetrics()
        self.step_loss = StepLoss(
            self.model, loss_to_minimise(params), self.train_params, self.metrics
        )
        self.optimizer = make_dense_optimizer(self.train_params.dense_optimizer, self.weights)
        self.num_synchronised = 0

    def set_peers(self, peers: Peers) -> None:
        """Call other actors from now on."""
        self.peers = peers

    @property
    def has_own_steps(self) -> bool:
        """Whether the dense layers take steps of this worker's own between synchronisations."""
        return self.train_params.servers.dense_every > 1

    def train(self) -> None:
        """Train on stretches of steps until none is left in the segment.

        Raises:
            Diverged: The loss of a step is NaN or infinite.
            ActorLost: An actor that it calls has ended.
        """
        if self.has_own_steps:
            weights, state = self._dense("pull", None), self._dense("optimizer_state")
            self.server_weights = weights.result()
            unflatten(self.server_weights, self.weights)
            load_optimizer_state(self.optimizer, state.result())
            self.steps_since = self.steps_in_segment = 0
        while (stretch := self._wait_for("take_stretch")) is not None:
            if not self._train_on(stretch):
                return
        if self.has_own_steps and self.steps_in_segment:
            self._synchronise()
            self._dense("add_state", optimizer_state_of(self.optimizer)).result()

    def score(self, weights: Floats, start: int, stop: int) -> list[Scores]:
        """Score the validation batches start .. stop - 1.

        Args:
            weights: The weights of the dense layers to score with.
            start: The first batch.
            stop: The end, exclusive.
        """
        unflatten(weights, self.weights)
        return [self._score(batch) for batch in self.valid_batches.steps(start, stop)]

    def _train_on(self, stretch: Stretch) -> bool:
        """Train on a stretch; returns whether the segment goes on."""
        batches = self.batches.steps(*stretch)
        ticket = self._wait_for("begin_step")
        if ticket is None:
            return False
        asked = self._ask(stretch.start, next(batches))
        for step in range(*stretch):
            following = next(batches, None)
            # The rows of the next step come while this step is computed, if it may begin so early.
            request = None
            if following is not None and self.train_params.servers.staleness:
                request = self.peers.coordinator.call("try_begin_step", self.number)
            dense_bytes = self._receive(asked)
            next_ticket = request.result() if request else None
            next_asked = None
            if following is not None and next_ticket is not None:
                next_asked = self._ask(step + 1, following)
            self._update(step, ticket, asked, dense_bytes)
            if following is None:
                break
            if next_asked is None:
                next_ticket = self._wait_for("begin_step")
                if next_ticket is None:
                    return False
                next_asked = self._ask(step + 1, following)
            ticket, asked = next_ticket, next_asked
        return True

    def _update(self, step: int, ticket: int, asked: Asked, dense_bytes: int) -> None:
        """Compute the gradients of a step, send them, and wait until all servers have them."""
        train = self.train_params
        factor = lr_factor(ticket, self.num_steps, train)
        selections = [wanted.selection for wanted in asked.wanted]
        for weight in self.weights:
            weight.grad = None
        self.metrics.reset()
        grads = self.step_loss.backward(
            asked.batch, selections, check=lambda loss_sum: _check_finite(loss_sum, step)
        )
        if train.max_grad_norm is not None:
            clip_gradients(train.max_grad_norm, self.model, selections, grads)
        of_groups = self.model.embeddings.of_groups(grads)
        summed = [
            tables.summed(selection, of_group)
            for tables, selection, of_group in zip(self.tables, selections, of_groups, strict=True)
        ]
        parts_of_groups = [
            of_servers(grad_UD, indices)
            for grad_UD, indices in zip(summed, asked.indices, strict=True)
        ]
        lr = train.embedding_optimizer.lr * factor
        calls, pushed_bytes = [], 0
        for server, actor in enumerate(self.peers.tables):
            parts = [of_group[server].numpy() for of_group in parts_of_groups]
            calls.append(actor.call("push", step, lr, asked.places[server], parts))
            pushed_bytes += _num_bytes(parts) + _num_bytes(asked.places[server])
        if self.has_own_steps:
            set_lr(self.optimizer, train.dense_optimizer.lr * factor)
            self.optimizer.step()
            self.steps_since += 1
            self.steps_in_segment += 1
            if self.steps_since == train.servers.dense_every:
                dense_bytes += self._synchronise()
        else:
            grad = flatten(
                torch.zeros_like(weight) if weight.grad is None else weight.grad
                for weight in self.weights
            )
            calls.append(self._dense("push", step, ticket, grad))
            dense_bytes += grad.nbytes
        for call in calls:
            call.result()
        record = StepRecord(
            step,
            self.metrics.parts(),
            0,
            sum(map(_num_bytes, asked.places)) + sum(grad_UD.nbytes for grad_UD in summed),
            pushed_bytes,
            dense_bytes,
        )
        self.peers.coordinator.call("end_step", self.number, ticket, record).result()

    def _ask(self, step: int | None, batch: Batch) -> Asked:
        """Ask the servers for the rows of a batch, and for the dense weights if they have them.

        Args:
            step: The step; None for validation rows, whose dense weights are here.
            batch: The batch.
        """
        selections = self.model.embeddings.selections(batch.rows.ids, batch.rows.bags)
        wanted = [
            tables.wanted(selection)
            for tables, selection in zip(self.tables, selections, strict=True)
        ]
        of_groups = [
            placement.split(of_group.rows)
            for placement, of_group in zip(self.placements, wanted, strict=True)
        ]
        places = [
            [of_group[server].numpy() for _, of_group in of_groups]
            for server in range(len(self.peers.tables))
        ]
        return Asked(
            batch,
            wanted,
            [indices for indices, _ in of_groups],
            places,
            [
                actor.call("pull", step, of_server)
                for actor, of_server in zip(self.peers.tables, places, strict=True)
            ],
            None if step is None or self.has_own_steps else self._dense("pull", step),
        )

    def _receive(self, asked: Asked) -> int:
        """Take the rows and the dense weights that were asked for; returns the latter's bytes."""
        pulled = [call.result() for call in asked.pulls]
        for g, (tables, indices) in enumerate(zip(self.tables, asked.indices, strict=True)):
            tables.hold(joined([tensor_of(of_groups[g]) for of_groups in pulled], indices))
        if asked.dense is None:
            return 0
        weights = asked.dense.result()
        unflatten(weights, self.weights)
        return int(weights.nbytes)

    def _synchronise(self) -> int:
        """Exchange the progress since the last time with the dense server; returns the bytes."""
        progress = flatten(self.weights) - self.server_weights
        call = self._dense(
            "synchronise", self.number, self.num_synchronised, self.steps_since, progress
        )
        self.num_synchronised += 1
        self.server_weights = call.result()
        unflatten(self.server_weights, self.weights)
        self.steps_since = 0
        return 2 * int(progress.nbytes)

    @torch.no_grad()
    def _score(self, batch: Batch) -> Scores:
        rows = batch.rows
        asked = self._ask(None, batch)
        self._receive(asked)
        embeddings = self.model.embeddings
        vectors = embeddings.lookup([wanted.selection for wanted in asked.wanted])
        logits_B = self.model.logits(rows.dense, vectors, rows.bags)
        loss_sum = logloss(logits_B, rows.labels, rows.weights)
        weights = None if rows.weights is None else rows.weights.numpy()
        return Scores(loss_sum.numpy(), logits_B.numpy(), rows.labels.numpy(), weights)

    def _dense(self, method: str, *args: Any) -> Pending:
        return self.peers.dense.call(method, *args)

    def _wait_for(self, method: str) -> Any:
        """Call a method of the coordinator until it has something to say."""
        while True:
            answer = self.peers.coordinator.call(method, self.number).result()
            if answer != "wait":
                return answer


def _as_pulled_rows(tables: Any) -> PulledRows:
    assert isinstance(tables, PulledRows)
    return tables


def _check_finite(loss_sum: Tensor, step: int) -> None:
    loss = loss_sum.item()
    if not np.isfinite(loss):
        raise Diverged(step + 1, f"train loss {loss}")


def _num_bytes(arrays: Sequence[NDArray[Any]]) -> int:
    return sum(array.nbytes for array in arrays)
