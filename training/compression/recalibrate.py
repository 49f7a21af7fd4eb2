"""Recalibration: a factor and a term for the logits of a compressed model.

They bring its click probabilities as near to those of the original model as possible, in mean cross
entropy. The labels are not used, so a model that is not changed keeps its scores, and one that was
trained with another loss than the logloss keeps its meaning.

Shapes: N rows.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.models.dlrm import DLRM
from training.models.ensemble import Ensemble, members_of

Array = NDArray[np.float64]
MAX_STEPS = 50
SMALL_STEP = 1e-10
RIDGE = 1e-9  # keeps the solution unique where all logits are equal


class Calibration(NamedTuple):
    """The recalibrated logit is scale * logit + shift."""

    scale: float
    shift: float

    def apply(self, logits_N: NDArray[Any]) -> NDArray[np.float32]:
        """Return the recalibrated logits."""
        return (logits_N.astype(np.float64) * self.scale + self.shift).astype(np.float32)


def fit_calibration(
    logits_N: NDArray[Any], original_N: NDArray[Any], weights_N: NDArray[Any] | None
) -> Calibration:
    """Fit the recalibration by Newton's method.

    Args:
        logits_N: The logits of the compressed model.
        original_N: Those of the original model.
        weights_N: Sample weights; None if all are 1.
    """
    x_N, target_N = logits_N.astype(np.float64), probabilities(original_N)
    weight_N = np.ones(len(x_N)) if weights_N is None else weights_N.astype(np.float64)
    weight_N = weight_N / max(weight_N.sum(), np.finfo(np.float64).tiny)

    def loss(scale: float, shift: float) -> float:
        logit_N = scale * x_N + shift
        of_rows = np.logaddexp(0, logit_N) - target_N * logit_N
        return float((weight_N * of_rows).sum()) + RIDGE * ((scale - 1) ** 2 + shift**2) / 2

    found = Calibration(1.0, 0.0)
    for _ in range(MAX_STEPS):
        p_N = probabilities(found.scale * x_N + found.shift)
        error_N, curve_N = weight_N * (p_N - target_N), weight_N * p_N * (1 - p_N)
        gradient = np.array([(error_N * x_N).sum(), error_N.sum()])
        gradient += RIDGE * np.array([found.scale - 1, found.shift])
        a, b, d = ((curve_N * power).sum() for power in (x_N * x_N, x_N, 1.0))
        a, d = a + RIDGE, d + RIDGE
        step = np.array([d * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]])
        step /= a * d - b * b
        before = loss(*found)
        while np.abs(step).max() > SMALL_STEP and loss(*_after(found, step)) > before:
            step /= 2
        found = _after(found, step)
        if np.abs(step).max() <= SMALL_STEP:
            break
    return found


def _after(calibration: Calibration, step: Array) -> Calibration:
    return Calibration(calibration.scale - float(step[0]), calibration.shift - float(step[1]))


def probabilities(logits_N: NDArray[Any]) -> Array:
    """Return the sigmoid of logits in float64."""
    return np.exp(-np.logaddexp(0, -logits_N.astype(np.float64)))


@torch.no_grad()
def recalibrate(model: DLRM | Ensemble, calibration: Calibration) -> None:
    """Put a recalibration into the last layer of each model, which is float32.

    The logit of an ensemble is the mean of its models' logits, so it is recalibrated with them.
    """
    for member in members_of(model):
        last = list(member.top)[-1]
        assert isinstance(last, nn.Linear)
        last.weight = nn.Parameter(last.weight * calibration.scale, requires_grad=False)
        bias = last.bias * calibration.scale + calibration.shift
        last.bias = nn.Parameter(bias, requires_grad=False)
