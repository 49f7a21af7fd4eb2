"""What training minimises, from logits and labels (0 or 1), each (B,) float, to the sum over the batch.

Focal and smoothing have their minimum elsewhere than at the click probabilities (docs/guides/models.md says where). Validation, the choice of
weights and the curves go by logloss whatever is minimised.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from common.config import model as model_params

Loss = Callable[[Tensor, Tensor], Tensor]


def logloss(logits_B: Tensor, labels_B: Tensor) -> Tensor:
    """Plain binary cross entropy: -ln of the probability that the model gives to what happened."""
    return binary_cross_entropy_with_logits(logits_B, labels_B, reduction="sum")


def weighted_logloss(
    logits_B: Tensor, labels_B: Tensor, *, positive_weight: float, label_smoothing: float
) -> Tensor:
    """Cross entropy against labels y (1 - s) + s / 2 (Szegedy et al. 2016, two classes); a clicked row counts w = positive_weight times.

    Counting clicks w times multiplies their odds by w. What is weighed is therefore the logit + ln w, and the model's own logit stays that
    of the click rate (the prior correction of King & Zeng 2001, made before and not after; exact without smoothing).
    """
    targets_B = labels_B * (1 - label_smoothing) + label_smoothing / 2
    weights_B = 1 + (positive_weight - 1) * labels_B
    return binary_cross_entropy_with_logits(
        logits_B + math.log(positive_weight), targets_B, weight=weights_B, reduction="sum"
    )


def focal(logits_B: Tensor, labels_B: Tensor, *, gamma: float, alpha: float) -> Tensor:
    """-a (1 - p)^gamma ln p, p the probability of what happened, a = alpha of a clicked row and 1 - alpha of others (Lin et al. 2017).

    All from ln p and ln(1 - p): a power of 1 - p itself has an infinite slope where 1 - p is rounded to 0 and gamma is below 1.
    """
    logit_of_label_B = torch.where(labels_B > 0, logits_B, -logits_B)
    alpha_B = labels_B * alpha + (1 - labels_B) * (1 - alpha)
    return -(
        alpha_B * torch.exp(gamma * logsigmoid(-logit_of_label_B)) * logsigmoid(logit_of_label_B)
    ).sum()


def make_loss(params: model_params.Loss) -> Loss:
    if params.name == "focal":
        return partial(focal, gamma=params.gamma, alpha=params.alpha)
    if params.positive_weight == 1 and params.label_smoothing == 0:
        return logloss
    return partial(
        weighted_logloss,
        positive_weight=params.positive_weight,
        label_smoothing=params.label_smoothing,
    )
