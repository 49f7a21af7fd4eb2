"""Cat and cross interactions equal their formulas in NumPy, with gradients derived by hand."""

import numpy as np
import pytest
import torch

from common.config.loading import ConfigError
from common.config.model import Model
from tests.factories.support import plain_model
from training.models.cross import CrossInteraction
from training.models.factory import build_model
from training.models.interaction import CatInteraction, Interaction

B, F, D = 5, 3, 4
RANKS = [None, 2]
TYPES = [
    (torch.float64, 1e-10),
    (torch.float32, 1e-4),
]  # compiled kernels are used for float32 only


def make_inputs(
    has_bottom: bool, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor | None, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(B, F + 1, D, dtype=torch.float64, generator=generator).to(dtype)
    bottom = vectors[:, 0].clone().requires_grad_() if has_bottom else None
    return bottom, vectors[:, 1:].clone().requires_grad_()


def make_cross(
    num_layers: int, rank: int | None, has_bottom: bool, dtype: torch.dtype = torch.float64
) -> CrossInteraction:
    """Return cross layers whose biases are not 0, as after some training."""
    generator = torch.Generator().manual_seed(4)
    tested = CrossInteraction(F, D, num_layers, rank, generator, has_bottom=has_bottom).to(dtype)
    for layer in tested.layers:
        torch.nn.init.normal_(layer[-1].bias, generator=generator)
    return tested


def matrices(tested: CrossInteraction) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (W, b) of each layer; W is the product of a low-rank layer's factors."""
    layers = []
    for layer in tested.layers:
        W = np.eye(tested.num_outputs)
        for linear in layer:
            W = linear.weight.detach().numpy() @ W
        layers.append((W, layer[-1].bias.detach().numpy()))
    return layers


def grads_of(
    tested: Interaction, upstream: np.ndarray, *inputs: torch.Tensor | None
) -> list[np.ndarray]:
    """Return the gradients of the inputs for the gradient `upstream` of the output."""
    (tested(*inputs) * torch.tensor(upstream)).sum().backward()
    return [tensor.grad.numpy() for tensor in inputs if tensor is not None]


def flatten(bottom: torch.Tensor | None, rows: torch.Tensor) -> np.ndarray:
    """Return x_0: the bottom MLP's vector, then the vector of each column."""
    parts = [] if bottom is None else [bottom]
    return np.concatenate([part.detach().numpy() for part in [*parts, *rows.unbind(1)]], axis=1)


def unflatten(x: np.ndarray, has_bottom: bool) -> list[np.ndarray]:
    """Undo `flatten`."""
    vectors = x.reshape(B, -1, D)
    return [vectors[:, 0], vectors[:, 1:]] if has_bottom else [vectors]


@pytest.mark.parametrize("has_bottom", [True, False])
def test_cat_concatenates_the_vectors(has_bottom: bool) -> None:
    bottom, rows = make_inputs(has_bottom)
    tested = CatInteraction(F, D, has_bottom=has_bottom)
    upstream = np.random.default_rng(0).normal(size=(B, tested.num_outputs))
    np.testing.assert_array_equal(tested(bottom, rows).detach(), flatten(bottom, rows))
    for found, expected in zip(
        grads_of(tested, upstream, bottom, rows), unflatten(upstream, has_bottom), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("has_bottom", [True, False])
def test_cross_layers_follow_the_formula(has_bottom: bool, rank: int | None) -> None:
    """The formula is x_{l+1} = x_0 * (W_l x_l + b_l) + x_l."""
    bottom, rows = make_inputs(has_bottom)
    tested = make_cross(3, rank, has_bottom)
    x_0 = flatten(bottom, rows)
    for k in range(B):
        x = x_0[k]
        for W, b in matrices(tested):
            x = x_0[k] * (W @ x + b) + x
        np.testing.assert_allclose(tested(bottom, rows)[k].detach(), x, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), TYPES)
@pytest.mark.parametrize("rank", RANKS)
def test_gradients_of_cross_layers(rank: int | None, dtype: torch.dtype, rtol: float) -> None:
    """The formula is dL/dx_l = dL/dx_{l+1} + W_l^T (x_0 * dL/dx_{l+1}).

    The gradient of x_0 is dL/dx_l of the first layer, plus the sum of
    (W_l x_l + b_l) * dL/dx_{l+1} over all layers.
    """
    bottom, rows = make_inputs(True, dtype)
    tested = make_cross(3, rank, True, dtype)
    upstream = np.random.default_rng(0).normal(size=(B, tested.num_outputs))
    layers, x_0 = matrices(tested), flatten(bottom, rows)
    xs = [x_0]
    for W, b in layers:
        xs.append(x_0 * (xs[-1] @ W.T + b) + xs[-1])
    grad, grad_0, grads_W, grads_b = upstream, np.zeros_like(x_0), [], []
    for (W, b), x in reversed(list(zip(layers, xs, strict=False))):
        inner = x_0 * grad
        grad_0 = grad_0 + (x @ W.T + b) * grad
        grads_W.insert(0, inner.T @ x)
        grads_b.insert(0, inner.sum(axis=0))
        grad = grad + inner @ W

    found = grads_of(tested, upstream, bottom, rows)
    for found_k, expected in zip(found, unflatten(grad + grad_0, has_bottom=True), strict=True):
        np.testing.assert_allclose(found_k, expected, rtol=rtol, atol=rtol)
    for layer, grad_W, grad_b in zip(tested.layers, grads_W, grads_b, strict=True):
        np.testing.assert_allclose(layer[-1].bias.grad, grad_b, rtol=rtol, atol=rtol)
        if rank is None:
            np.testing.assert_allclose(layer[0].weight.grad, grad_W, rtol=rtol, atol=rtol)
        else:  # W = U V, and the first linear layer has V
            V, U = (linear.weight.detach().numpy() for linear in layer)
            np.testing.assert_allclose(layer[0].weight.grad, U.T @ grad_W, rtol=rtol, atol=rtol)
            np.testing.assert_allclose(layer[1].weight.grad, grad_W @ V.T, rtol=rtol, atol=rtol)


def test_initial_weights_of_cross_layers() -> None:
    """As in TorchRec, weights have Glorot's normal distribution and biases are 0; layers differ."""
    generator = torch.Generator().manual_seed(1)
    full = CrossInteraction(63, 8, 2, None, generator, has_bottom=True).layers
    low = CrossInteraction(63, 8, 1, 128, generator, has_bottom=True).layers
    assert abs(full[0][0].weight.std().item() / (2 / 1024) ** 0.5 - 1) < 0.01
    assert [linear.weight.shape for linear in low[0]] == [(128, 512), (512, 128)]
    assert all(abs(linear.weight.std().item() / (2 / 640) ** 0.5 - 1) < 0.02 for linear in low[0])
    assert not any(layer[-1].bias.any() for layer in (*full, *low))
    assert not torch.equal(full[0][0].weight, full[1][0].weight)


def test_mlperf_size() -> None:
    """MLPerf's DLRM-DCNv2 has 26 columns of dim 128 and three cross layers of rank 512."""
    parts = {"interaction": {"name": "cross", "layers": 3, "rank": 512}}
    widths = {"embedding_dim": 128, "bottom_mlp": [512, 256], "top_mlp": [1024, 1024, 512, 256]}
    params = Model.model_validate(plain_model(**widths, **parts))
    model = build_model(params, [3] * 26, 13, torch.Generator())
    assert sum(weight.numel() for weight in model.interaction.parameters()) == 3 * (
        2 * 3456 * 512 + 3456
    )
    assert model.top[0].weight.shape == (1024, 3456)


@pytest.mark.parametrize(
    ("interaction", "columns", "num_dense", "message"),
    [
        (
            {"name": "cross", "layers": 1, "rank": 12},
            2,
            1,
            r"interaction\.rank is 12, but the matrices are 12 wide"
            r" \(3 vectors of embedding_dim 4\)",
        ),
        (
            {"name": "dot"},
            1,
            0,
            "interaction is dot, but there are no pairs:"
            " 1 categorical features and no dense ones; take cat or cross",
        ),
    ],
)
def test_too_few_columns_for_an_interaction_are_refused(
    interaction: dict[str, object], columns: int, num_dense: int, message: str
) -> None:
    params = Model.model_validate(
        plain_model(embedding_dim=4, bottom_mlp=[], top_mlp=[], interaction=interaction)
    )
    with pytest.raises(ConfigError, match=rf"params\.yaml: model\.{message}"):
        build_model(params, [5] * columns, num_dense, torch.Generator())
    build_model(params, [5] * (columns + 1), num_dense, torch.Generator())
