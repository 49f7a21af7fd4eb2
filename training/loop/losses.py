"""Losses: functions of logits and labels (0 or 1), each (B,) float, summed over the batch.

The loss of a row is multiplied by its sample weight, (B,) float32; None means 1 for all rows.

With distillation the labels are soft: numbers between 0 and 1 (`of_soft_labels`).

Focal loss and label smoothing are not lowest at the click probabilities (docs/guides/models.md says
where). Validation, the choice of weights and the training curve use the logloss, whatever loss is
minimised.
"""

import math
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from common.config import model as model_params


class Loss(Protocol):
    """A loss, summed over the batch."""

    def __call__(
        self, logits_B: Tensor, labels_B: Tensor, weights_B: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the weighted losses, a scalar."""


def logloss(logits_B: Tensor, labels_B: Tensor, weights_B: Tensor | None = None) -> Tensor:
    """Return the binary cross entropy -ln p, with p the model's probability of the label."""
    return binary_cross_entropy_with_logits(logits_B, labels_B, weight=weights_B, reduction="sum")


def weighted_logloss(
    logits_B: Tensor,
    labels_B: Tensor,
    weights_B: Tensor | None = None,
    *,
    positive_weight: float,
    label_smoothing: float,
) -> Tensor:
    """Return the cross entropy with smoothed labels, in which a clicked row counts several times.

    Counting clicks w times multiplies their odds by w. The loss is therefore taken of the logit +
    ln w, and the model's own logit remains that of the click rate (the prior correction of King &
    Zeng 2001, before training instead of after it; exact without smoothing).

    Args:
        logits_B: The logits.
        labels_B: The labels y, 0 or 1.
        weights_B: The sample weights.
        positive_weight: The weight w of a clicked row.
        label_smoothing: The share s of y (1 - s) + s / 2 (Szegedy et al. 2016, for two classes).
    """
    targets_B = labels_B * (1 - label_smoothing) + label_smoothing / 2
    factors_B = 1 + (positive_weight - 1) * labels_B
    if weights_B is not None:
        factors_B = factors_B * weights_B
    return binary_cross_entropy_with_logits(
        logits_B + math.log(positive_weight), targets_B, weight=factors_B, reduction="sum"
    )


def focal(
    logits_B: Tensor,
    labels_B: Tensor,
    weights_B: Tensor | None = None,
    *,
    gamma: float,
    alpha: float,
) -> Tensor:
    """Return the focal loss -a (1 - p)^gamma ln p (Lin et al. 2017).

    p is the probability that the model gives to the label. It is computed from ln p and ln(1 - p):
    a power of 1 - p itself has an infinite slope where 1 - p is rounded to 0 and gamma < 1.

    Args:
        logits_B: The logits.
        labels_B: The labels, 0 or 1.
        weights_B: The sample weights.
        gamma: The exponent; 0 gives the weighted logloss.
        alpha: The weight a of a clicked row; that of other rows is 1 - alpha.
    """
    logit_of_label_B = torch.where(labels_B > 0, logits_B, -logits_B)
    alpha_B = labels_B * alpha + (1 - labels_B) * (1 - alpha)
    if weights_B is not None:
        alpha_B = alpha_B * weights_B
    return -(
        alpha_B * torch.exp(gamma * logsigmoid(-logit_of_label_B)) * logsigmoid(logit_of_label_B)
    ).sum()


def soft_labels(labels_B: Tensor, scores_B: Tensor, weight: float) -> Tensor:
    """Return the labels (1 - w) y + w p of distillation (Hinton et al. 2015, temperature 1).

    Args:
        labels_B: The labels y, 0 or 1.
        scores_B: The teachers' scores p.
        weight: The weight w of the teachers.
    """
    return torch.lerp(labels_B, scores_B, weight)


def of_soft_labels(loss: Loss) -> Loss:
    """Return a loss for soft labels y: y times that of a clicked row, 1 - y times that of others.

    So the loss of (1 - w) y + w p is the mixture of the losses of y and of p, whatever `loss` is.
    The cross entropy is linear in the label, and already is this mixture.
    """

    def mixed(logits_B: Tensor, labels_B: Tensor, weights_B: Tensor | None = None) -> Tensor:
        clicks_B, others_B = labels_B, 1 - labels_B
        if weights_B is not None:
            clicks_B, others_B = clicks_B * weights_B, others_B * weights_B
        ones_B = torch.ones_like(labels_B)
        return loss(logits_B, ones_B, clicks_B) + loss(logits_B, 1 - ones_B, others_B)

    return loss if loss is logloss else mixed


def make_loss(params: model_params.Loss) -> Loss:
    """Make the loss that params.yaml's `model.loss` describes."""
    if params.name == "focal":
        return partial(focal, gamma=params.gamma, alpha=params.alpha)
    if params.positive_weight == 1 and params.label_smoothing == 0:
        return logloss
    return partial(
        weighted_logloss,
        positive_weight=params.positive_weight,
        label_smoothing=params.label_smoothing,
    )
