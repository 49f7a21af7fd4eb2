"""Permutation importance equals whole forward passes with values of other rows."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from common.artifact import Artifact
from common.bundle_layout import MODEL
from common.config.model import Model
from common.layout import FEATURES
from tests.factories.features import training_params, write_features
from tests.factories.permuted import brute_force
from training.evaluation import importance
from training.evaluation.importance import Importance, measure_importance
from training.evaluation.random_rows import random_rows
from training.inference.bundle import Bundle, load_bundle
from training.stage import train

DAYS = {"train": [900, 800], "valid": [150, 250], "test": [50]}
NUM_VALID = 400
RATES = {
    "dense_optimizer": {"name": "adam", "lr": 0.01},
    "embedding_optimizer": {"name": "rowwise_adagrad", "lr": 0.1},
}


def trained(root: Path, **model: Any) -> Bundle:
    write_features(root, DAYS)
    train(training_params(model, epochs=3, **RATES), root)
    return load_bundle(root / MODEL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Artifact]:
    root = tmp_path_factory.mktemp("importance")
    return trained(root), Artifact.open(root / FEATURES)


def measured(project: tuple[Bundle, Artifact]) -> Importance:
    return measure_importance(*project)


def test_it_is_the_rise_that_whole_forward_passes_find(project: tuple[Bundle, Artifact]) -> None:
    bundle, features = project
    schema = bundle.state.schema
    found = measured(project)
    assert found.num_rows == NUM_VALID
    assert {(one.column, one.kind) for one in found.columns} == (
        {(name, "dense") for name in schema.dense_features}
        | {(name, "categorical") for name in schema.categorical_features}
    )
    rows = random_rows(features, schema, "valid", NUM_VALID, importance.SEED)
    for one in found.columns:
        expected = brute_force(bundle.model, rows, schema, [one.column])
        assert tuple(one.rise) == pytest.approx(expected, abs=1e-6), one.column
    for subset in found.subsets:
        expected = brute_force(bundle.model, rows, schema, subset.columns)
        assert tuple(subset.rise) == pytest.approx(expected, abs=1e-6)


def test_the_columns_that_clicks_depend_on_are_first(project: tuple[Bundle, Artifact]) -> None:
    columns = measured(project).columns
    assert {one.column for one in columns[:2]} == {"I1", "C1"}
    rises = [one.rise.mean for one in columns]
    assert rises == sorted(rises, reverse=True)
    assert rises[1] > 0.02 > 3 * max(map(abs, rises[2:]))


def test_values_stay_in_their_block(
    project: tuple[Bundle, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded by blocks; more of them give about the same figures."""
    whole = {one.column: one.rise.mean for one in measured(project).columns}
    monkeypatch.setattr(importance, "BLOCK_ROWS", 64)
    in_blocks = {one.column: one.rise.mean for one in measured(project).columns}
    assert in_blocks != whole
    for name in ("I1", "C1"):
        assert in_blocks[name] == pytest.approx(whole[name], rel=0.4)


@pytest.mark.parametrize(
    ("limits", "num_rows"),
    [
        ({"MAX_ROWS": 70}, 70),
        ({"SCORES": 39 * 30}, 30),
        ({"SCORES": 39 * 30, "MIN_ROWS": 50}, 50),
        ({"SCORES": 1, "MIN_ROWS": 5}, NUM_VALID // 39),  # a score for each row of the split
    ],
)
def test_the_rows_are_bounded(
    project: tuple[Bundle, Artifact],
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, int],
    num_rows: int,
) -> None:
    limits = {"MIN_ROWS": 10} | limits
    for name, value in limits.items():
        monkeypatch.setattr(importance, name, value)
    assert measured(project).num_rows == num_rows


def test_the_subsets_are_sections_of_params_yaml(project: tuple[Bundle, Artifact]) -> None:
    found = measured(project)
    ascending = [one.column for one in found.columns if one.kind == "categorical"][::-1]
    assert [len(subset.columns) for subset in found.subsets] == [3, 5, 10]
    for subset in found.subsets:
        assert subset.columns == ascending[: len(subset.columns)]
        tables = yaml.safe_load(subset.tables)
        assert tables == {"name": "per_column", "dims": dict.fromkeys(subset.columns, 0)}
        assert subset.table_share == pytest.approx(len(subset.columns) / 26)


def test_columns_that_are_left_out_have_no_importance(tmp_path: Path) -> None:
    """The sections that leave out more columns keep the dims of all other columns."""
    dims = {"C1": 2, "C2": 0, "C3": 0}
    bundle = trained(tmp_path, tables={"name": "per_column", "dims": dims})
    found = measure_importance(bundle, Artifact.open(tmp_path / FEATURES))
    assert len(found.columns) == 13 + 24
    assert not {"C2", "C3"} & {one.column for one in found.columns}
    assert len(found.subsets) == 3
    for subset in found.subsets:
        tables = yaml.safe_load(subset.tables)
        assert tables["dims"] == dims | dict.fromkeys(subset.columns, 0)
        numbers = 2 + 23 * 4
        saved = sum(2 if name == "C1" else 4 for name in subset.columns)
        assert subset.table_share == pytest.approx(saved / numbers)
        Model.model_validate(bundle.manifest.params["model"] | {"tables": tables})


def test_composed_tables_have_no_subsets(tmp_path: Path) -> None:
    bundle = trained(tmp_path, tables={"name": "mixed_dim", "alpha": 1, "threshold": 3})
    found = measure_importance(bundle, Artifact.open(tmp_path / FEATURES))
    assert len(found.columns) == 39
    assert found.subsets == []
