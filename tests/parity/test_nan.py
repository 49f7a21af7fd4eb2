"""A NaN passes through every operator, with each implementation.

If one operator made 0 of it, a model with lost weights would give plausible, constant scores, and
a run that has diverged would continue unnoticed.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config import model as model_params
from common.config.model import Model
from tests.factories.support import plain_model
from training.kernels import choice, compiler, linear_layers
from training.kernels.choice import Implementations
from training.loop.losses import make_loss
from training.models.bags import Bag
from training.models.dlrm import DLRM
from training.models.factory import build_model
from training.models.mlp import set_precision
from training.models.reads import CategoricalInputs
from training.optim.embedding_optimizers import make_embedding_optimizer, update_tables
from training.optim.gradient_clipping import clip_gradients

needs_library = pytest.mark.skipif(
    compiler.library() is None, reason="no kernels for this CPU, or no C++ compiler"
)
needs_bf16 = pytest.mark.skipif(
    not choice.bf16_supported(), reason="this CPU has no bf16 instructions"
)
CARDINALITIES = [9, 30, 14]
NUM_DENSE = 5
NUM_ROWS = 7
WIDTHS = {"embedding_dim": 8, "bottom_mlp": [19, 6], "top_mlp": [33, 9]}
WIDE = {"embedding_dim": 64, "bottom_mlp": [512, 256], "top_mlp": [512, 256]}
QR = {"name": "quotient_remainder", "collisions": 4, "threshold": 12}
PARTS: dict[str, dict[str, Any]] = {
    "dot": {},
    "wide": WIDE,  # with large matrix products oneDNN takes the place of PyTorch
    "cat": {"interaction": {"name": "cat"}},
    "cross": {"interaction": {"name": "cross", "layers": 2, "rank": None}},
    "cross of low rank": {"interaction": {"name": "cross", "layers": 2, "rank": 3}},
    "mult": {"tables": QR | {"operation": "mult"}},
    "add": {"tables": QR | {"operation": "add"}},
    "concat": {"tables": QR | {"operation": "concat"}},
    "mixed_dim": {"tables": {"name": "mixed_dim", "alpha": 1, "threshold": 9}},
    "per_column": {"tables": {"name": "per_column", "dims": {"b": 3, "c": 3}}},
}
LOSSES: dict[str, dict[str, Any]] = {
    "logloss": {"name": "bce", "positive_weight": 1, "label_smoothing": 0},
    "weighted": {"name": "bce", "positive_weight": 3, "label_smoothing": 0.1},
    "focal": {"name": "focal", "gamma": 2, "alpha": 0.25},
    "focal of gamma 0": {"name": "focal", "gamma": 0, "alpha": 0.25},
}
each_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.fixture(
    params=[
        "pytorch",
        "onednn",
        pytest.param("compiled", marks=needs_library),
    ]
)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compute all operators in one way."""
    operators: choice.Operators = "compiled" if request.param == "compiled" else "pytorch"
    with choice.forced(Implementations(operators, request.param)):
        yield request.param


def make_model(parts: dict[str, Any], pooling: str | None = None) -> DLRM:
    """Make a model; with a pooling, its second feature has lists."""
    params = Model.model_validate(plain_model(**WIDTHS | parts))
    inputs = CategoricalInputs([0, 1, 2], [None, pooling, None], ["a", "b", "c"])
    return build_model(
        params, CARDINALITIES, NUM_DENSE, torch.Generator().manual_seed(1), inputs=inputs
    )


def make_rows(num_rows: int = NUM_ROWS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    dense = torch.randn(num_rows, NUM_DENSE, generator=generator)
    return dense, torch.ones(num_rows, len(CARDINALITIES), dtype=torch.int32)


def with_nan(tensor: Tensor, position: int) -> Tensor:
    damaged = tensor.clone()
    damaged.view(-1)[position] = math.nan
    return damaged


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("name", PARTS)
def test_a_nan_in_any_weight_reaches_every_score(name: str) -> None:
    """A row of a table that is not looked up does not count."""
    model = make_model(PARTS[name]).eval()
    num_rows = 300 if name == "wide" else NUM_ROWS
    dense, ids = make_rows(num_rows)
    state = model.state_dict()
    assert model(dense, ids).isfinite().all()
    for weight, tensor in state.items():
        looked_up = 1  # row 1 of the first table of each group
        position = looked_up * tensor.shape[1] if ".tables." in weight else tensor.numel() - 1
        if weight == "embeddings.tables.0.weight" and "tables" in PARTS[name]:
            position = tensor.shape[1]  # of the feature that keeps a full table
        if weight == "embeddings.tables.1.weight" and "tables" in PARTS[name]:
            is_composed_of_two = PARTS[name]["tables"]["name"] == "quotient_remainder"
            position = 0 if is_composed_of_two else position
        model.load_state_dict(state | {weight: with_nan(tensor, position)})
        with torch.inference_mode():
            logits = model(dense, ids)
        assert logits.isnan().all(), weight
        assert torch.sigmoid(logits).isnan().all(), weight


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("name", PARTS)
def test_a_nan_in_a_row_reaches_the_score_of_this_row_alone(name: str) -> None:
    model = make_model(PARTS[name]).eval()
    dense, ids = make_rows()
    dense[3, 2] = math.nan
    with torch.inference_mode():
        assert model(dense, ids).isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("name", PARTS)
def test_a_nan_in_a_row_reaches_the_gradients(name: str, precision: choice.Precision) -> None:
    """The gradients of all layers above it, and of this row's embeddings."""
    model = make_model(PARTS[name])
    set_precision(model, precision)
    dense, ids = make_rows()
    dense[3, 2] = math.nan
    leaves = [
        rows.detach().requires_grad_()
        for rows in model.embeddings.lookup(model.embeddings.ids(ids))
    ]
    logits = model.logits(dense, leaves)
    make_loss(model_params.Bce(**LOSSES["logloss"]))(logits, torch.ones(NUM_ROWS)).backward()
    for weight, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert parameter.grad.isnan().any(), weight
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad[3].isnan().any()
        assert leaf.grad[[0, 1, 2, 4, 5, 6]].isfinite().all()


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("pooling", ["sum", "weighted", "mean", "max"])
@pytest.mark.parametrize("name", ["dot", "mult", "add", "concat", "mixed_dim", "per_column"])
def test_a_nan_anywhere_in_a_list_reaches_the_score_and_the_update(
    name: str, pooling: str, position: int, precision: choice.Precision
) -> None:
    """PyTorch's own `max` skips a NaN that is not in the first row of its list."""
    model = make_model(PARTS[name], "sum" if pooling == "weighted" else pooling)
    set_precision(model, precision)
    embeddings = model.embeddings
    values = torch.tensor([4, 9, 14, 20, 25, 26], dtype=torch.int32)  # quotients 1, 2, 3, 5, 6, 6
    weights = torch.tensor([1.0, 0, 2, 1, 1, 1]) if pooling == "weighted" else None
    bag = Bag(values, torch.tensor([0, 3, 3, 6]), weights)
    group, number = embeddings.places(1)[0]
    damaged_id = int(embeddings.split_ids(1, values)[0][position])
    tables = embeddings.tables[group]
    row = tables.spans[number][0] + damaged_id  # type: ignore[union-attr, operator, index]
    with torch.no_grad():
        tables.weight[row] = math.nan  # type: ignore[operator, index]

    dense, ids = make_rows(3)
    selections = embeddings.selections(ids[:, :2], [bag])
    leaves = [rows.requires_grad_() for rows in embeddings.lookup(selections)]
    logits = model.logits(dense, leaves, [bag])
    assert logits.isnan().tolist() == [True, False, False]
    make_loss(model_params.Bce(**LOSSES["logloss"]))(logits, torch.ones(3)).backward()
    grads = embeddings.of_groups(
        # a group whose only feature has lists has no columns
        [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    )
    for each, selection, of_group in zip(embeddings.tables, selections, grads, strict=True):
        optimizer = make_embedding_optimizer("rowwise_adagrad", each)  # type: ignore[arg-type]
        update_tables(optimizer, each, selection, of_group, 0.1)  # type: ignore[arg-type]
        if each is tables:
            assert optimizer.sums[row].isnan()  # type: ignore[union-attr, index]


@each_loss
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_nan_in_the_logits_reaches_the_loss_and_its_gradient(loss: str, label: float) -> None:
    params: Any = model_params.Focal if "focal" in loss else model_params.Bce
    logits = torch.tensor([1.0, math.nan, -2.0], requires_grad=True)
    value = make_loss(params(**LOSSES[loss]))(logits, torch.full((3,), label))
    assert value.isnan()
    value.backward()
    assert logits.grad is not None
    assert logits.grad.isnan().tolist() == [False, True, False]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad"])
def test_a_nan_in_a_gradient_reaches_the_row_of_its_table(name: str) -> None:
    model = make_model({})
    (tables,) = model.embeddings.tables
    _, ids = make_rows()
    ids[3] = 2
    grad = torch.ones(NUM_ROWS, len(CARDINALITIES), 8)
    grad[3, 1, 4] = math.nan
    make_embedding_optimizer(name, tables).step(tables, ids, grad, 0.1)  # type: ignore[arg-type]
    damaged = tables.weight.isnan().any(dim=1).nonzero().flatten().tolist()
    assert damaged == [CARDINALITIES[0] + 2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_clipping_does_not_hide_a_gradient_that_is_no_number(value: float) -> None:
    """A norm of NaN or infinity must not become the largest norm that is allowed."""
    model = make_model({})
    _, ids = make_rows()
    grad = torch.ones(NUM_ROWS, len(CARDINALITIES), 8)
    grad[3, 1, 4] = value
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.ones_like(weight)
    clip_gradients(1.0, model, [ids], [grad])
    assert grad[3, 1, 4].isnan()


@needs_bf16
@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F80FFFF])
@pytest.mark.parametrize("where", ["inputs", "weights"])
def test_bfloat16_rounds_no_nan_to_a_number(where: str, bits: int) -> None:
    """There are many NaNs: the sum that rounds would carry some of them over to 0 or infinity."""
    nan = torch.tensor([bits], dtype=torch.uint32).view(torch.float32)
    inputs, weights = torch.ones(4, 6), [torch.ones(5, 6), torch.ones(3, 5)]
    (inputs if where == "inputs" else weights[1])[2, 1:2] = nan
    leaves = [inputs.requires_grad_(), *(weight.requires_grad_() for weight in weights)]
    outputs = linear_layers.linear_stack(
        inputs, weights, [torch.zeros(5), torch.zeros(3)], relu_last=False, precision="bf16"
    )
    expected = [2] if where == "inputs" else [0, 1, 2, 3]
    assert outputs.isnan().any(dim=1).nonzero().flatten().tolist() == expected
    outputs.sum().backward()
    grads: list[Callable[[], Any]] = [leaf.grad.isnan().any for leaf in leaves]  # type: ignore[union-attr]
    assert [bool(any_nan()) for any_nan in grads[:2]] == [where == "weights", True]
