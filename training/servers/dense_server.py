"""The dense server: an actor with the dense layers' weights, their averages and their optimizer.

With `dense_every` 1 it applies the gradients of every step. Otherwise each worker has an optimizer
of its own and takes steps of its own; every `dense_every` of them it sends its progress, of which
the server adds 1 / W (W workers), and goes on from the server's weights. Downpour SGD (Dean et al.
2012) exchanges at such intervals too, but sends the sum of the gradients. At a barrier the
optimizers' states are averaged over the workers, so that a checkpoint has one state, whatever the
number of workers.

Weights and gradients travel as one float32 array (P,), in the order of `dense_weights`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.bundle_layout import STATE
from common.config.params import Params
from common.layout import FEATURES
from features.encode.feature_state import FeatureState
from training.loop.schedule import lr_factor
from training.loop.weight_averaging import average, averaged_model_of, dense_weights
from training.models.factory import make_model
from training.optim.dense_optimizers import make_dense_optimizer
from training.servers.applied_steps import AppliedSteps
from training.servers.pulled_rows import PulledRows
from training.servers.table_server import tensor_of

Floats = NDArray[np.float32]


class DenseServer:
    """Has the dense layers, and updates them.

    Args:
        params: The parameters of params.yaml.
        root: The directory with artifacts/.
        steps_per_epoch: The number of steps of an epoch.
        num_steps: The number of steps of the run.
    """

    def __init__(self, params: Params, root: Path, steps_per_epoch: int, num_steps: int) -> None:
        self.train = params.train
        self.steps_per_epoch, self.num_steps = steps_per_epoch, num_steps
        state = FeatureState.load(root / FEATURES / STATE)
        self.model = make_model(params, state, PulledRows)
        self.weights = dense_weights(self.model)
        self.optimizer = make_dense_optimizer(self.train.dense_optimizer, self.weights)
        self.averaged = averaged_model_of(self.model) if self.train.weight_averaging else None
        self.steps = AppliedSteps(waits=self.train.servers.staleness == 0)
        self.step_in_epoch = 0  # that the averages have seen, with `dense_every` above 1
        self.synchronised: dict[int, int] = {}  # of each worker, the number of the last time
        self.states: list[list[Floats]] = []  # of the workers' optimizers, at a barrier

    def load(self, weights: Floats, averaged: Floats | None, state: list[Floats]) -> None:
        """Take over the weights, their averages and the optimizer's state."""
        unflatten(weights, self.weights)
        if self.averaged is not None:
            assert averaged is not None
            unflatten(averaged, dense_weights(self.averaged))
        load_optimizer_state(self.optimizer, state)
        self.steps.clear()
        self.states.clear()

    def pull(self, step: int | None) -> Floats:
        """Return the weights.

        Args:
            step: The step that begins; None at a barrier.
        """
        self.steps.begin(step)
        return flatten(self.weights)

    def push(self, step: int, ticket: int, grads: Floats) -> None:
        """Update the weights by the gradients of a step, once for each step.

        Args:
            step: The step, counted over epochs.
            ticket: Its ticket, which decides the learning rate.
            grads: The gradients.
        """
        self.steps.push(step, lambda: self._apply(ticket, grads))

    def _apply(self, ticket: int, grads: Floats) -> None:
        factor = lr_factor(ticket, self.num_steps, self.train)
        set_lr(self.optimizer, self.train.dense_optimizer.lr * factor)
        for weight, grad in zip(self.weights, split(grads, self.weights), strict=True):
            weight.grad = grad
        self.optimizer.step()
        self._average(ticket % self.steps_per_epoch)

    def _average(self, step_in_epoch: int) -> None:
        if self.averaged is not None:
            average(self.averaged, self.model, step_in_epoch)

    def begin_segment(self, step: int) -> None:
        """Take note of the step that begins, counted over epochs; all steps before are applied."""
        self.step_in_epoch = step % self.steps_per_epoch

    def synchronise(self, worker: int, number: int, num_steps: int, progress: Floats) -> Floats:
        """Add a worker's share of its progress since the last time; returns the weights.

        The averages are updated as if the weights had been these after each of the steps.

        Args:
            worker: The number of the worker.
            number: How often it has called before; a number that has come already adds nothing.
            num_steps: The steps that it has taken since the last time.
            progress: The change of its weights since it took over the server's.
        """
        if self.synchronised.get(worker, -1) < number:
            self.synchronised[worker] = number
            shares = split(progress / np.float32(self.train.servers.workers), self.weights)
            with torch.no_grad():
                for weight, of_weight in zip(self.weights, shares, strict=True):
                    weight.add_(of_weight)
            for _ in range(num_steps):
                self._average(self.step_in_epoch)
                self.step_in_epoch += 1
        return flatten(self.weights)

    def add_state(self, state: list[Floats]) -> None:
        """Keep the state of the optimizer of a worker that has taken steps, until the barrier."""
        self.states.append(state)

    def optimizer_state(self) -> list[Floats]:
        """Return the state of the optimizer, or the mean of those that workers have sent since."""
        if self.states:
            of_tensors = zip(*self.states, strict=True)
            means = [np.stack(arrays).mean(axis=0, dtype=np.float32) for arrays in of_tensors]
            load_optimizer_state(self.optimizer, means)
            self.states.clear()
        return optimizer_state_of(self.optimizer)

    def averages(self) -> Floats | None:
        """Return the averaged weights; None if weights are not averaged."""
        return None if self.averaged is None else flatten(dense_weights(self.averaged))

    def ping(self) -> None:
        """Answer."""

    def barrier(self) -> None:
        """Apply all gradients that have come; no step of before is pushed again."""
        self.steps.barrier()


def flatten(tensors: Iterable[Tensor]) -> Floats:
    """Return the values of tensors as one new array."""
    flat: Floats = torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()
    return flat


def split(values: Floats, like: Iterable[Tensor]) -> list[Tensor]:
    """Return the parts of an array in the shapes of tensors."""
    flat, parts, start = tensor_of(values), [], 0
    for tensor in like:
        parts.append(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
    return parts


@torch.no_grad()
def unflatten(values: Floats, targets: Sequence[Tensor]) -> None:
    """Copy the values of an array into tensors."""
    torch._foreach_copy_(list(targets), split(values, targets))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all weights."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_state_of(optimizer: torch.optim.Optimizer) -> list[Floats]:
    """Return the tensors of an optimizer's state as arrays; an empty list before its first step."""
    states: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return [
        value.numpy().astype(np.float32)
        for k in sorted(states)
        for _, value in sorted(states[k].items())
        if isinstance(value, Tensor)
    ]


def load_optimizer_state(optimizer: torch.optim.Optimizer, arrays: list[Floats]) -> None:
    """Take over what `optimizer_state_of` returned for an optimizer of the same weights."""
    content = optimizer.state_dict()
    names = STATE_NAMES[type(optimizer)]
    remaining = iter(arrays)
    content["state"] = {
        k: {name: torch.tensor(next(remaining)) for name in names}
        for k in range(len(content["param_groups"][0]["params"]) if arrays else 0)
    }
    optimizer.load_state_dict(content)


# the tensors of the state of each weight, in alphabetical order
STATE_NAMES: dict[type, tuple[str, ...]] = {
    torch.optim.SGD: (),
    torch.optim.Adam: ("exp_avg", "exp_avg_sq", "step"),
    torch.optim.Adagrad: ("step", "sum"),
}
