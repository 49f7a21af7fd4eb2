"""The DLRM is compared with one in NumPy: forward pass, loss, gradients, three optimizer steps."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from common.config.model import Model
from tests.factories.support import plain_model
from tests.parity.numpy_dlrm import NumpyDLRM, bce, sigmoid
from training.models.dlrm import DLRM
from training.models.factory import build_model
from training.optim.embedding_optimizers import make_embedding_optimizer

CARDINALITIES = [7, 1, 3, 40, 2]
NUM_DENSE, DIM, BATCH, LR = 4, 6, 16, 0.1
TYPES = [(torch.float64, 1e-5), (torch.float32, 1e-4)]


def make_models(dtype: torch.dtype) -> tuple[DLRM, NumpyDLRM]:
    """Return both models, with the same weights."""
    model = make_dlrm(CARDINALITIES, NUM_DENSE, DIM, [10, 8], [9, 5], 3).to(dtype)
    starts = np.cumsum([0, *CARDINALITIES])
    weight = weight_of(model).numpy().copy()
    return model, NumpyDLRM(
        [weight[a:b] for a, b in pairwise(starts)], layers_of(model.bottom), layers_of(model.top)
    )


def make_dlrm(
    cardinalities: list[int], num_dense: int, dim: int, bottom: list[int], top: list[int], seed: int
) -> DLRM:
    """Return a DLRM with random weights."""
    params = Model.model_validate(plain_model(embedding_dim=dim, bottom_mlp=bottom, top_mlp=top))
    return build_model(params, cardinalities, num_dense, torch.Generator().manual_seed(seed))


def weight_of(model: DLRM) -> torch.Tensor:
    """Return the rows of all tables."""
    return model.embeddings.tables[0].weight


def layers_of(stack: torch.nn.Sequential) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return copies of the weight and bias of each linear layer."""
    linears = [layer for layer in stack if isinstance(layer, torch.nn.Linear)]
    return [
        (linear.weight.detach().numpy().copy(), linear.bias.detach().numpy().copy())
        for linear in linears
    ]


def make_batch(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return dense features, ids and labels; there are few ids, so most rows repeat."""
    rng = np.random.default_rng(seed)
    dense = torch.tensor(rng.normal(size=(BATCH, NUM_DENSE)), dtype=dtype)
    ids = torch.tensor(
        rng.integers(0, np.minimum(CARDINALITIES, 5), size=(BATCH, len(CARDINALITIES))),
        dtype=torch.int32,
    )
    return dense, ids, torch.tensor(rng.integers(0, 2, size=BATCH), dtype=dtype)


@pytest.mark.parametrize(("dtype", "rtol"), TYPES)
def test_forward_loss_and_gradients(dtype: torch.dtype, rtol: float) -> None:
    model, reference = make_models(dtype)
    dense, ids, labels = make_batch(0, dtype)
    rows = model.embeddings.tables[0](ids).requires_grad_()
    logits = model.logits(dense, [rows])
    loss = binary_cross_entropy_with_logits(logits, labels)
    loss.backward()

    expected = reference.forward(dense.numpy(), reference.lookup(ids.numpy()))
    grad_rows, bottom, top = reference.backward(
        (sigmoid(expected) - labels.numpy()) / np.asarray(BATCH, expected.dtype)
    )
    assert_close(logits.detach(), expected, rtol)
    assert_close(model(dense, ids).detach(), expected, rtol)
    assert_close(loss.detach(), bce(expected, labels.numpy()), rtol)
    assert_close(rows.grad, grad_rows, rtol)
    grads = [p.grad for stack in (model.bottom, model.top) for p in stack.parameters()]
    for grad, wanted in zip(
        grads, [array for pair in [*bottom, *top] for array in pair], strict=True
    ):
        assert_close(grad, wanted, rtol)


@pytest.mark.parametrize("tables", ["sgd", "rowwise_adagrad"])
@pytest.mark.parametrize(("dtype", "rtol"), TYPES)
def test_three_steps(dtype: torch.dtype, rtol: float, tables: str) -> None:
    model, reference = make_models(dtype)
    embedding_optimizer = make_embedding_optimizer(tables, model.embeddings.tables[0])
    dense_optimizer = torch.optim.SGD([*model.bottom.parameters(), *model.top.parameters()], lr=LR)
    for step in range(3):
        dense, ids, labels = make_batch(step, dtype)
        rows = model.embeddings.tables[0](ids).requires_grad_()
        loss = binary_cross_entropy_with_logits(model.logits(dense, [rows]), labels)
        dense_optimizer.zero_grad()
        loss.backward()
        dense_optimizer.step()
        embedding_optimizer.step(model.embeddings.tables[0], ids, rows.grad, LR)
        assert_close(
            loss.detach(),
            reference.step(dense.numpy(), ids.numpy(), labels.numpy(), LR, tables),
            rtol,
        )
    assert_close(weight_of(model).detach(), np.concatenate(reference.tables), rtol)
    for (weight, bias), (weight_ref, bias_ref) in zip(
        layers_of(model.bottom) + layers_of(model.top),
        reference.bottom + reference.top,
        strict=True,
    ):
        assert_close(weight, weight_ref, rtol)
        assert_close(bias, bias_ref, rtol)


def test_kaggle_architecture_has_the_published_size() -> None:
    # Small tables are enough: the width 367 = 16 + 26 * 27 / 2 follows from the 26 columns.
    model = make_dlrm([3] * 26, 13, 16, [512, 256, 64], [512, 256], 1)
    shapes = [tuple(weight.shape) for weight, _ in layers_of(model.bottom) + layers_of(model.top)]
    assert shapes == [(512, 13), (256, 512), (64, 256), (16, 64), (512, 367), (256, 512), (1, 256)]
    assert (
        sum(p.numel() for p in [*model.bottom.parameters(), *model.top.parameters()])
        == 540_677_217 - 33_762_577 * 16
    )


def test_initial_weights() -> None:
    """The layers are so large that their standard deviation is near that of the distribution."""
    model = make_dlrm([10_000, 4], 300, 8, [400], [500], 1)
    big, small = weight_of(model)[:10_000], weight_of(model)[10_000:]
    assert 0.0099 < big.abs().max() <= 0.01
    assert abs(big.std() - 0.01 / 3**0.5) < 1e-4
    assert 0.25 < small.abs().max() <= 0.5
    weight, bias = layers_of(model.bottom)[0]
    assert abs(weight.std() / (2 / 700) ** 0.5 - 1) < 0.01
    assert abs(bias.std() / (1 / 400) ** 0.5 - 1) < 0.15
    again = make_dlrm([10_000, 4], 300, 8, [400], [500], 1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )


def assert_close(actual: object, expected: object, rtol: float) -> None:
    """Compare arrays; values near zero may differ by rtol / 100."""
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * 1e-2)
