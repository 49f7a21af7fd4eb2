"""Cat and cross interactions against their formulas, row by row in NumPy, gradients derived by hand."""

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
TYPES = [(torch.float64, 1e-10), (torch.float32, 1e-4)]  # the compiled way is for the latter


def inputs(
    has_bottom: bool, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor | None, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = torch.randn(B, F + 1, D, dtype=torch.float64, generator=generator).to(dtype)
    return made[:, 0].clone().requires_grad_() if has_bottom else None, made[
        :, 1:
    ].clone().requires_grad_()


def cross(
    num_layers: int, rank: int | None, has_bottom: bool, dtype: torch.dtype = torch.float64
) -> CrossInteraction:
    """With biases that are not 0, as after some training."""
    generator = torch.Generator().manual_seed(4)
    made = CrossInteraction(F, D, num_layers, rank, generator, has_bottom=has_bottom).to(dtype)
    for layer in made.layers:
        torch.nn.init.normal_(layer[-1].bias, generator=generator)
    return made


def matrices(tested: CrossInteraction) -> list[tuple[np.ndarray, np.ndarray]]:
    """(W, b) of each layer, W multiplied out."""
    made = []
    for layer in tested.layers:
        W = np.eye(tested.num_outputs)
        for linear in layer:
            W = linear.weight.detach().numpy() @ W
        made.append((W, layer[-1].bias.detach().numpy()))
    return made


def grads_of(
    tested: Interaction, upstream: np.ndarray, *given: torch.Tensor | None
) -> list[np.ndarray]:
    (tested(*given) * torch.tensor(upstream)).sum().backward()
    return [tensor.grad.numpy() for tensor in given if tensor is not None]


def flat(bottom: torch.Tensor | None, rows: torch.Tensor) -> np.ndarray:
    """x_0: bottom, then column by column."""
    parts = [] if bottom is None else [bottom]
    return np.concatenate([part.detach().numpy() for part in [*parts, *rows.unbind(1)]], axis=1)


def unflat(x: np.ndarray, has_bottom: bool) -> list[np.ndarray]:
    vectors = x.reshape(B, -1, D)
    return [vectors[:, 0], vectors[:, 1:]] if has_bottom else [vectors]


@pytest.mark.parametrize("has_bottom", [True, False])
def test_cat_is_the_vectors_one_behind_the_other(has_bottom: bool) -> None:
    bottom, rows = inputs(has_bottom)
    tested = CatInteraction(F, D, has_bottom=has_bottom)
    upstream = np.random.default_rng(0).normal(size=(B, tested.num_outputs))
    np.testing.assert_array_equal(tested(bottom, rows).detach(), flat(bottom, rows))
    for found, expected in zip(
        grads_of(tested, upstream, bottom, rows), unflat(upstream, has_bottom), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("has_bottom", [True, False])
def test_cross_layers_follow_the_formula(has_bottom: bool, rank: int | None) -> None:
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l."""
    bottom, rows = inputs(has_bottom)
    tested = cross(3, rank, has_bottom)
    x_0 = flat(bottom, rows)
    for k in range(B):
        x = x_0[k]
        for W, b in matrices(tested):
            x = x_0[k] * (W @ x + b) + x
        np.testing.assert_allclose(tested(bottom, rows)[k].detach(), x, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), TYPES)
@pytest.mark.parametrize("rank", RANKS)
def test_gradients_of_cross_layers(rank: int | None, dtype: torch.dtype, rtol: float) -> None:
    """dL/dx_l = dL/dx_{l+1} + W^T (x_0 * dL/dx_{l+1}); x_0 collects (W x_l + b) * dL/dx_{l+1} of each layer, and is the first x itself."""
    bottom, rows = inputs(True, dtype)
    tested = cross(3, rank, True, dtype)
    upstream = np.random.default_rng(0).normal(size=(B, tested.num_outputs))
    layers, x_0 = matrices(tested), flat(bottom, rows)
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
    for found_k, expected in zip(found, unflat(grad + grad_0, has_bottom=True), strict=True):
        np.testing.assert_allclose(found_k, expected, rtol=rtol, atol=rtol)
    for layer, grad_W, grad_b in zip(tested.layers, grads_W, grads_b, strict=True):
        np.testing.assert_allclose(layer[-1].bias.grad, grad_b, rtol=rtol, atol=rtol)
        if rank is None:
            np.testing.assert_allclose(layer[0].weight.grad, grad_W, rtol=rtol, atol=rtol)
        else:  # W = U V^T, and the first linear layer holds V^T
            V_T, U = (linear.weight.detach().numpy() for linear in layer)
            np.testing.assert_allclose(layer[0].weight.grad, U.T @ grad_W, rtol=rtol, atol=rtol)
            np.testing.assert_allclose(layer[1].weight.grad, grad_W @ V_T.T, rtol=rtol, atol=rtol)


def test_initial_weights_of_cross_layers() -> None:
    """Glorot's normal distribution for both shapes, biases 0, as TorchRec starts them; layers differ."""
    generator = torch.Generator().manual_seed(1)
    full = CrossInteraction(63, 8, 2, None, generator, has_bottom=True).layers
    low = CrossInteraction(63, 8, 1, 128, generator, has_bottom=True).layers
    assert abs(full[0][0].weight.std().item() / (2 / 1024) ** 0.5 - 1) < 0.01
    assert [linear.weight.shape for linear in low[0]] == [(128, 512), (512, 128)]
    assert all(abs(linear.weight.std().item() / (2 / 640) ** 0.5 - 1) < 0.02 for linear in low[0])
    assert not any(layer[-1].bias.any() for layer in (*full, *low))
    assert not torch.equal(full[0][0].weight, full[1][0].weight)


def test_mlperf_size() -> None:
    """DLRM-DCNv2 of MLPerf: 26 columns of dim 128, three layers of rank 512: 3 (2 * 3456 * 512 + 3456) parameters in the cross layers."""
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
            r"interaction\.rank is 12, but the matrices are 12 wide \(3 vectors of embedding_dim 4\)",
        ),
        (
            {"name": "dot"},
            1,
            0,
            "interaction is dot, but there are no pairs: 1 categorical features and no dense ones; take cat or cross",
        ),
    ],
)
def test_columns_too_few_for_an_interaction(
    interaction: dict[str, object], columns: int, num_dense: int, message: str
) -> None:
    params = Model.model_validate(
        plain_model(embedding_dim=4, bottom_mlp=[], top_mlp=[], interaction=interaction)
    )
    with pytest.raises(ConfigError, match=rf"params\.yaml: model\.{message}"):
        build_model(params, [5] * columns, num_dense, torch.Generator())
    build_model(params, [5] * (columns + 1), num_dense, torch.Generator())
