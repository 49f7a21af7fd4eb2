"""The footprint of a model equals a count by hand, and one by PyTorch's counter of operations."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.config.model import Model
from tests.factories.support import plain_model
from training.kernels import choice
from training.models.bags import Bag
from training.models.dlrm import DLRM
from training.models.factory import build_model
from training.models.footprint import Footprint, footprint_of
from training.models.interaction import DotInteraction
from training.models.reads import CategoricalInputs

N, D, B = 3, 4, 5
CARDINALITIES = [10, 100, 7]
WIDTHS = {"embedding_dim": D, "bottom_mlp": [6], "top_mlp": [5], "interaction": {"name": "cat"}}
QR = {"name": "quotient_remainder", "collisions": 10, "threshold": 50}
MIXED_DIM = {"name": "mixed_dim", "alpha": 1, "threshold": 50}  # 100 values: 4 / 2 floats
CROSS = {"name": "cross", "layers": 2, "rank": None}
BOTTOM = 3 * 6 + 6 * 4  # multiply-adds of the bottom MLP
TOP = (4 * 4) * 5 + 5 * 1  # of the top MLP behind four vectors of 4
DENSE = BOTTOM + 6 + 4 + TOP + 5 + 1  # weights of both MLPs with their biases
# variant: parts of the model, its table parameters, other parameters, multiply-adds, floats read
BY_HAND: dict[str, tuple[dict[str, Any], int, int, int, int]] = {
    "cat": ({}, 117 * 4, DENSE, BOTTOM + TOP, 3 * 4),
    # six pairs, and the top MLP has 4 + 6 inputs
    "dot": (
        {"interaction": {"name": "dot"}},
        117 * 4,
        DENSE - 6 * 5,
        BOTTOM + TOP - 6 * 5 + 6 * 4,
        3 * 4,
    ),
    "cross": (
        {"interaction": CROSS},
        117 * 4,
        DENSE + 2 * (16 * 16 + 16),
        BOTTOM + TOP + 2 * (16 * 16 + 16),
        3 * 4,
    ),
    "cross of rank 3": (
        {"interaction": CROSS | {"rank": 3}},
        117 * 4,
        DENSE + 2 * (2 * 16 * 3 + 16),
        BOTTOM + TOP + 2 * (2 * 16 * 3 + 16),
        3 * 4,
    ),
    # 100 values are 10 quotients and 10 remainders
    "mult": (
        {"tables": QR | {"operation": "mult"}},
        (17 + 20) * 4,
        DENSE,
        BOTTOM + TOP + 4,
        4 * 4,
    ),
    "add": ({"tables": QR | {"operation": "add"}}, (17 + 20) * 4, DENSE, BOTTOM + TOP, 4 * 4),
    "concat": (
        {"tables": QR | {"operation": "concat"}},
        17 * 4 + 20 * 2,
        DENSE,
        BOTTOM + TOP,
        2 * 4 + 2 * 2,
    ),
    "mixed_dim": (
        {"tables": MIXED_DIM},
        17 * 4 + 100 * 2,
        DENSE + 2 * 4,
        BOTTOM + TOP + 2 * 4,
        2 * 4 + 2,
    ),
    # 10 and 100 values have rows of one float, 7 values of two
    "mixed_dim of two in a group": (
        {"tables": MIXED_DIM | {"threshold": 3}},
        10 + 100 + 7 * 2,
        DENSE + (1 + 1 + 2) * 4,
        BOTTOM + TOP + (1 + 1 + 2) * 4,
        1 + 1 + 2,
    ),
}


def make_model(num_dense: int = N, inputs: CategoricalInputs | None = None, **parts: Any) -> DLRM:
    params = Model.model_validate(plain_model(**WIDTHS | parts))
    cardinalities = CARDINALITIES
    if inputs is not None:
        cardinalities = [CARDINALITIES[table] for table in inputs.tables]
    generator = torch.Generator().manual_seed(1)
    return build_model(params, cardinalities, num_dense, generator, inputs=inputs).eval()


@pytest.mark.parametrize("name", BY_HAND)
def test_the_footprint_equals_a_count_by_hand(name: str) -> None:
    parts, table_parameters, others, macs, floats_read = BY_HAND[name]
    parameters = table_parameters + others
    assert footprint_of(make_model(**parts)) == Footprint(
        parameters, table_parameters, 4 * (parameters + 2 * N), macs, 4 * floats_read
    )


@pytest.mark.parametrize("pooling", ["sum", "mean", "max"])
@pytest.mark.parametrize("name", ["cat", "mult", "concat", "mixed_dim"])
def test_lists_and_shared_tables_count_once_for_each_feature(name: str, pooling: str) -> None:
    """Two features read the large table. A list counts as one value, however it is pooled."""
    inputs = CategoricalInputs([0, 1, 1, 2], [None, None, pooling, None])
    parts, *_, macs, floats_read = BY_HAND[name]
    found = footprint_of(make_model(inputs=inputs, **parts))
    of_large_feature = {"cat": (0, 4), "mult": (4, 8), "concat": (0, 4), "mixed_dim": (8, 2)}
    more_macs, more_floats = of_large_feature[name]
    assert found.macs == macs + more_macs + 4 * 5  # one more vector of 4 for the top MLP
    assert found.bytes_per_row == 4 * (floats_read + more_floats)
    assert found.table_parameters == footprint_of(make_model(**parts)).table_parameters


@pytest.mark.parametrize(
    "inputs",
    [
        CategoricalInputs([0, 1, 2], [None] * 3, ["a", "b", "c"]),
        CategoricalInputs([0, 1, 2, 0], [None, None, "sum", None], ["a", "b", "c", "d"]),
    ],
    ids=["plain", "with a list and a feature that shares a table"],
)
def test_a_feature_that_is_left_out_costs_nothing(inputs: CategoricalInputs) -> None:
    """The second feature is left out, and the one that shares the table of the first, too."""
    tables = {"name": "per_column", "dims": {"b": 0, "c": 2, "d": 0}}
    found = footprint_of(make_model(inputs=inputs, tables=tables))
    table_parameters = 10 * 4 + 7 * 2
    assert found.table_parameters == table_parameters
    assert found.parameters == table_parameters + DENSE - 4 * 5  # one vector less
    assert found.macs == BOTTOM + TOP - 4 * 5
    assert found.bytes_per_row == 4 * (4 + 2)


def counted_macs(model: DLRM, num_dense: int, inputs: CategoricalInputs | None) -> float:
    """Count the multiply-adds of matrix products in a forward pass of B rows, for one row.

    The shapes of the forward pass decide, so the count does not depend on the rules of the modules.
    """
    of_hooks = [0]

    def count_dots(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        bottom, rows = args
        num_vectors = rows.shape[1] + (bottom is not None)
        # PyTorch's operators multiply all vectors with all, and the model needs each pair once.
        of_hooks[0] += num_vectors**2 * rows.shape[2]
        of_hooks[0] -= num_vectors * (num_vectors - 1) // 2 * rows.shape[2]

    if isinstance(model.interaction, DotInteraction):
        model.interaction.register_forward_hook(count_dots)
    poolings = inputs.poolings if inputs else [None] * len(CARDINALITIES)
    ids = torch.zeros(B, poolings.count(None), dtype=torch.int32)
    bags = [
        Bag(torch.zeros(B, dtype=torch.int32), torch.arange(B + 1), None)
        for pooling in poolings
        if pooling
    ]
    counter = FlopCounterMode(display=False)
    with (
        torch.no_grad(),
        choice.forced(choice.Implementations("pytorch", "pytorch")),
        counter,
    ):
        model(torch.zeros(B, num_dense), ids, bags)
    return counter.get_total_flops() / 2 / B - of_hooks[0]


@pytest.mark.parametrize("num_dense", [0, N])
@pytest.mark.parametrize("pooling", [None, "sum", "max"])
@pytest.mark.parametrize("name", BY_HAND)
def test_the_multiply_adds_equal_those_of_a_forward_pass(
    name: str, pooling: str | None, num_dense: int
) -> None:
    inputs = CategoricalInputs([0, 1, 1, 2], [None, None, pooling, None]) if pooling else None
    model = make_model(num_dense, inputs, **BY_HAND[name][0])
    element_wise = 0
    if name.startswith("cross"):
        element_wise = 2 * model.interaction.num_outputs
    if name == "mult":
        element_wise = D * (2 if pooling else 1)
    counted = counted_macs(model, num_dense, inputs)
    assert footprint_of(model).macs == counted + element_wise


def test_the_footprint_of_several_models_is_the_sum() -> None:
    model = make_model()
    one, two = footprint_of(model), footprint_of(nn.ModuleList([model, make_model()]))
    assert (two.macs, two.bytes, two.bytes_per_row) == (
        2 * one.macs,
        2 * one.bytes,
        2 * one.bytes_per_row,
    )
