"""The number of a model's weights is known before it is made."""

from typing import Any

import pytest
import torch

from common.config.model import Model
from tests.factories.support import plain_model
from training.models.factory import build_model, num_weights

CARDINALITIES = [3, 50, 1000, 17, 200, 201]
WIDTHS = {"embedding_dim": 8, "bottom_mlp": [5], "top_mlp": [9, 4]}
QR = {"name": "quotient_remainder", "collisions": 4, "threshold": 200}
PARTS: list[dict[str, Any]] = [
    {},
    {"bottom_mlp": [], "top_mlp": []},
    {"interaction": {"name": "cat"}},
    {"interaction": {"name": "cross", "layers": 3, "rank": None}},
    {"interaction": {"name": "cross", "layers": 2, "rank": 5}},
    {"tables": QR | {"operation": "mult"}},
    {"tables": QR | {"operation": "concat"}},
    {"tables": QR | {"operation": "add", "threshold": 5000}},
    {"tables": {"name": "mixed_dim", "alpha": 0.3, "threshold": 20}},
    {"tables": {"name": "mixed_dim", "alpha": 1, "threshold": 5000}},
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("num_dense", [0, 7])
def test_the_number_of_weights_is_that_of_the_model(parts: dict[str, Any], num_dense: int) -> None:
    params = Model.model_validate(plain_model(**WIDTHS | parts))
    model = build_model(params, CARDINALITIES, num_dense, torch.Generator())
    num_found = sum(tensor.numel() for tensor in model.state_dict().values())
    assert num_weights(params, CARDINALITIES, num_dense) == num_found
