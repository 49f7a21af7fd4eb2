"""`clickmill tune dims`: the supernet's losses, and what the whole search finds and writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from common.config.loading import ConfigError
from common.config.model import PerColumn
from common.config.params import Params
from common.files import DataError, read_json
from features.schema.check_params import check_column_dims
from features.schema.schema import load_schema
from tests.factories.features import CARDINALITY, training_params, write_features
from tests.factories.list_logs import schema_of
from training.stage import train
from training.tune import supernet as supernets
from training.tune.dims import RESULT, search_dims, tables_section
from training.tune.supernet import RandomDims, Supernet, prefix_mask, tables_of, train_supernet

DAYS = {"train": [900, 800], "valid": [150, 250], "test": [50]}
RATES = {
    "dense_optimizer": {"name": "adam", "lr": 0.01},
    "embedding_optimizer": {"name": "rowwise_adagrad", "lr": 0.1},
}


def make_params(**options: Any) -> Params:
    return training_params({"embedding_dim": 8}, epochs=3, logger="none", **RATES | options)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dims")
    write_features(root, DAYS)
    return root


@pytest.fixture(scope="module")
def net(project: Path) -> Supernet:
    return train_supernet(make_params(), project)


def test_a_loss_is_that_of_the_model_with_the_other_numbers_set_to_zero(net: Supernet) -> None:
    generator = torch.Generator().manual_seed(1)
    dims = tuple(
        int(dim) for dim in torch.tensor([0, 2, 4, 8])[torch.randint(4, (26,), generator=generator)]
    )
    (tables,) = net.model.embeddings.tables
    before = tables.weight.clone()
    try:
        with torch.no_grad():
            for (start, end), dim in zip(tables.spans, dims, strict=True):
                tables.weight[start:end, dim:] = 0
        logits = net.model(net.rows.dense, net.rows.ids)
        expected = binary_cross_entropy_with_logits(logits, net.rows.labels).item()
    finally:
        tables.weight.copy_(before)
    assert net.num_rows == 400
    assert net.loss(dims) == pytest.approx(expected, abs=1e-6)
    assert net.loss((8,) * 26) != pytest.approx(expected, abs=1e-4)


def test_the_shared_weights_tell_which_column_matters(net: Supernet) -> None:
    """Clicks depend on C1 alone of the categorical columns."""
    small = net.loss((2,) * 26)
    without_c1 = net.loss((0, *(2,) * 25))
    without_others = net.loss((2, *(0,) * 25))
    assert without_c1 > small + 0.05
    assert without_others < without_c1 - 0.05


def test_the_weights_follow_from_the_seed_and_the_loss_not_from_the_blocks(
    project: Path, net: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supernets, "BLOCK_ROWS", 64)
    again = train_supernet(make_params(), project)
    other = train_supernet(make_params(seed=5), project)
    for name, weight in net.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name
    assert len(again.blocks) == 7
    losses = [each.loss((4,) * 26) for each in (net, again, other)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-7)
    assert losses[2] != pytest.approx(losses[0], abs=1e-5)


def test_a_step_masks_the_features_of_a_table_alike_and_evaluation_masks_none() -> None:
    tables = tables_of(schema_of("json_lines"))
    assert tables[0] == tables[1] != tables[2]  # viewed, item, tags
    hook = RandomDims(tables, 8, seed=1)
    module, vectors = torch.nn.Identity(), torch.ones(5, len(tables), 8)
    found = set()
    for _ in range(60):
        bottom, masked = hook(module, (None, vectors))
        assert bottom is None
        dims = masked[0].sum(dim=1).int().tolist()
        assert torch.equal(masked, vectors * prefix_mask(dims, 8))
        assert dims[0] == dims[1]
        found.add(dims[2])
    assert found == {0, 2, 4, 8}
    module.eval()
    assert hook(module, (None, vectors))[1] is vectors


def test_the_search_finds_dims_in_the_budget_and_confirms_them(project: Path) -> None:
    params = make_params()
    found = search_dims(params, project, budget=0.25, num_seeds=2)
    first = (project / RESULT).read_bytes()
    assert read_json(project / RESULT, "") == found
    dims = found["tables"]["dims"]
    tables = PerColumn.model_validate(found["tables"])
    check_column_dims(params.model.model_copy(update={"tables": tables}), load_schema("criteo"))
    of_columns = [dims.get(f"C{k}", 8) for k in range(1, 27)]
    assert CARDINALITY * sum(of_columns) <= 0.25 * 8 * 26 * CARDINALITY
    assert of_columns[0] > 0
    assert [(row["model"], row["seed"]) for row in found["confirmed"]] == [
        ("searched", params.train.seed),
        ("uniform 2", params.train.seed),
        ("searched", params.train.seed + 1),
        ("uniform 2", params.train.seed + 1),
    ]
    assert all(row["error"] is None and row["logloss"] < 0.6 for row in found["confirmed"])
    assert found["confirmed"][0]["table_numbers"] == CARDINALITY * sum(of_columns)
    assert found["confirmed"][1]["table_numbers"] == 2 * 26 * CARDINALITY
    assert not (project / "runs/timings").exists()  # those of the train stage stay as they are

    search_dims(params, project, budget=0.25, num_seeds=2)
    assert (project / RESULT).read_bytes() == first


def test_what_is_found_can_be_trained(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    found = search_dims(make_params(), tmp_path, budget=0.1, num_seeds=1)
    params = training_params({"embedding_dim": 8, "tables": found["tables"]}, epochs=3, **RATES)
    train(params, tmp_path)
    assert (tmp_path / "artifacts/model/weights.safetensors").exists()


def test_columns_of_one_table_have_one_dim() -> None:
    schema = schema_of("json_lines")
    assert list(schema.tables) == ["item", "tags", "codes"]
    assert tables_section(schema, (4, 0, 8), 8).dims == {"viewed": 4, "item": 4, "tags": 0}


def test_a_budget_that_is_too_small_costs_no_training(project: Path) -> None:
    with pytest.raises(ConfigError, match="raise --budget"):
        search_dims(make_params(), project, budget=0.001, num_seeds=1)


def test_without_features_the_search_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="artifacts/features"):
        search_dims(make_params(), tmp_path, budget=0.25, num_seeds=1)


def test_a_confirmation_that_fails_is_a_row_with_its_reason(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the uniform model has matrices that are too narrow for the rank."""
    interaction = {"name": "cross", "layers": 1, "rank": 60}  # 27 vectors of 2 numbers are 54 wide
    params = training_params(
        {"embedding_dim": 8, "interaction": interaction}, epochs=1, logger="none", **RATES
    )
    found = search_dims(params, project, budget=0.25, num_seeds=1)
    searched, uniform = found["confirmed"]
    assert searched["error"] is None
    assert "model.interaction.rank is 60, but the matrices are 54 wide" in uniform["error"]
    assert uniform["logloss"] is None
