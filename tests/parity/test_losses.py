"""The losses and their gradients equal the formulas of their papers in NumPy's float64.

Some logits are so large that a probability is rounded to 0 or 1.
"""

import numpy as np
import pytest
import torch

from common.config.model import Bce, Focal
from training.loop.losses import Loss, logloss, make_loss, of_soft_labels, soft_labels

BCES = [(1, 0), (3.5, 0), (1, 0.1), (0.25, 0.3)]
FOCALS = [(0, 0.5), (2, 0.25), (0.5, 0.9), (5, 0.3)]
LOGITS, LABELS = np.meshgrid(np.linspace(-6, 6, 13), [0.0, 1.0])


def bce(positive_weight: float, label_smoothing: float) -> Loss:
    """Return the cross-entropy with these parameters."""
    return make_loss(
        Bce(name="bce", positive_weight=positive_weight, label_smoothing=label_smoothing)
    )


def focal(gamma: float, alpha: float) -> Loss:
    """Return the focal loss with these parameters."""
    return make_loss(Focal(name="focal", gamma=gamma, alpha=alpha))


def losses_and_slopes(
    loss: Loss, logits: np.ndarray, labels: np.ndarray, dtype: torch.dtype = torch.float64
) -> tuple[list[float], np.ndarray]:
    """Return the loss of each row, and the gradient of their sum."""
    x = torch.tensor(logits.ravel(), dtype=dtype).requires_grad_()
    y = torch.tensor(labels.ravel(), dtype=dtype)
    each = [loss(x[k : k + 1], y[k : k + 1]).item() for k in range(len(x))]
    total = loss(x, y)
    total.backward()
    assert total.item() == pytest.approx(sum(each), rel=1e-5)
    return each, x.grad.numpy()


@pytest.mark.parametrize(("positive_weight", "label_smoothing"), BCES)
def test_cross_entropy(positive_weight: float, label_smoothing: float) -> None:
    """The odds of p are the odds e^x of the model times the weight."""
    x, y = LOGITS.ravel(), LABELS.ravel()
    p = 1 / (1 + np.exp(-x) / positive_weight)
    target = y * (1 - label_smoothing) + label_smoothing / 2
    weight = np.where(y == 1, positive_weight, 1)
    each, slopes = losses_and_slopes(bce(positive_weight, label_smoothing), LOGITS, LABELS)
    np.testing.assert_allclose(
        each, weight * -(target * np.log(p) + (1 - target) * np.log(1 - p)), rtol=1e-9
    )
    np.testing.assert_allclose(slopes, weight * (p - target), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("gamma", "alpha"), FOCALS)
def test_focal(gamma: float, alpha: float) -> None:
    """The formulas are equations 4 and 5 and appendix B of Lin et al. (arXiv:1708.02002).

    The derivative is y (1 - p_t)^gamma (gamma p_t ln p_t + p_t - 1) for y = 1 or -1.
    """
    x, y = LOGITS.ravel(), LABELS.ravel()
    sign = 2 * y - 1
    p_t, alpha_t = 1 / (1 + np.exp(-sign * x)), np.where(y == 1, alpha, 1 - alpha)
    each, slopes = losses_and_slopes(focal(gamma, alpha), LOGITS, LABELS)
    np.testing.assert_allclose(each, -alpha_t * (1 - p_t) ** gamma * np.log(p_t), rtol=1e-9)
    np.testing.assert_allclose(
        slopes,
        alpha_t * sign * (1 - p_t) ** gamma * (gamma * p_t * np.log(p_t) + p_t - 1),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    "loss", [*(bce(*given) for given in BCES), *(focal(*given) for given in FOCALS)]
)
def test_no_logit_is_too_large(loss: Loss) -> None:
    """The loss of a very wrong logit is proportional to the logit, and the factor is the slope.

    The loss of a very right logit is smaller.
    """
    logits, labels = np.array([[-200.0, -1e4, 200, 1e4] * 2]), np.array([[0, 0, 1, 1, 1, 1, 0, 0]])
    each, slopes = losses_and_slopes(loss, logits, labels, torch.float32)
    assert np.isfinite(each).all()
    assert np.isfinite(slopes).all()
    for wrong in range(4, 8):
        assert each[wrong] / abs(logits[0, wrong]) == pytest.approx(abs(slopes[wrong]), rel=0.01)
        assert each[wrong] > each[wrong - 4]


def test_a_weight_counts_clicked_rows_several_times() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(50), (torch.rand(50) < 0.3).float()
    clicked = labels == 1
    repeated = (
        torch.cat([logits, logits[clicked], logits[clicked]]),
        torch.cat([labels, labels[clicked], labels[clicked]]),
    )
    for smoothing in (0, 0.2):
        torch.testing.assert_close(
            bce(3, smoothing)(logits - np.log(3), labels), bce(1, smoothing)(*repeated)
        )


def test_plain_cross_entropy_is_logloss_itself() -> None:
    """The default loss is the logloss, so it takes no extra time and gives the same bytes."""
    assert bce(1, 0) is logloss
    logits, labels = torch.randn(50), (torch.rand(50) < 0.3).float()
    torch.testing.assert_close(2 * focal(0, 0.5)(logits, labels), logloss(logits, labels))


@pytest.mark.parametrize("teacher_weight", [0.5, 0.3, 1])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize(
    "loss", [*(bce(*given) for given in BCES), *(focal(*given) for given in FOCALS)]
)
def test_the_loss_of_soft_labels_is_the_mixture_of_losses(
    loss: Loss, is_weighted: bool, teacher_weight: float
) -> None:
    """(1 - w) loss(y) + w (p loss(1) + (1 - p) loss(0)), and so are its gradients."""
    random = torch.Generator().manual_seed(1)
    y, p, row_weights = (torch.rand(50, generator=random, dtype=torch.float64) for _ in range(3))
    y = (y < 0.3).double()
    x = torch.randn(50, generator=random, dtype=torch.float64)

    def value_and_slopes(weighted: list[tuple[Loss, torch.Tensor, torch.Tensor]]) -> tuple:
        leaf = x.clone().requires_grad_()
        total = sum(of(leaf, labels, weights) for of, labels, weights in weighted)
        total.backward()
        return total.detach(), leaf.grad

    rows = row_weights if is_weighted else torch.ones_like(x)
    ones, zeros, w = torch.ones_like(y), torch.zeros_like(y), teacher_weight
    expected = value_and_slopes(
        [
            (loss, y, (1 - w) * rows),
            (loss, ones, w * p * rows),
            (loss, zeros, w * (1 - p) * rows),
        ]
    )
    soft = soft_labels(y, p, w)
    given = row_weights if is_weighted else None
    found = value_and_slopes([(of_soft_labels(loss), soft, given)])  # type: ignore[list-item]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_soft_labels_of_plain_logloss_take_no_extra_time() -> None:
    """The cross entropy is linear in the label, so the loss itself takes soft labels."""
    assert of_soft_labels(logloss) is logloss
    assert of_soft_labels(bce(3, 0)) is not logloss


def test_soft_labels_of_teachers_that_are_right_are_the_labels() -> None:
    y = torch.tensor([0.0, 1, 1, 0])
    assert torch.equal(soft_labels(y, y, 0.5), y)
    assert soft_labels(y, torch.full((4,), 0.25), 0.5).tolist() == [0.125, 0.625, 0.625, 0.125]
    assert soft_labels(y, torch.full((4,), 0.25), 1).tolist() == [0.25] * 4


@pytest.mark.parametrize("rate", [0.03, 0.4])
def test_the_score_that_minimises_a_loss(rate: float) -> None:
    """For rows with one click rate, the best score is the one that docs/guides/models.md gives."""
    scores = torch.linspace(0.0001, 0.9999, 9999, dtype=torch.float64)

    def best(loss: Loss) -> float:
        x = scores.logit().requires_grad_()
        (rate * loss(x, torch.ones_like(x)) + (1 - rate) * loss(x, torch.zeros_like(x))).backward()
        return scores[x.grad.abs().argmin()].item()

    assert best(logloss) == pytest.approx(rate, abs=2e-4)
    assert best(bce(5, 0)) == pytest.approx(rate, abs=2e-4)
    assert best(bce(1, 0.2)) == pytest.approx(rate * 0.8 + 0.1, abs=2e-4)
    assert rate + 0.01 < best(focal(2, 0.5)) < 0.5
