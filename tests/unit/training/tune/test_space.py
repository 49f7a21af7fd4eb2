"""Every value that a trial can have is checked before the first trial."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from common.config.loading import ConfigError, check, read_yaml
from common.config.params import Params, load_params
from common.config.tune import Range
from tests.factories.studies import make_tune, tune_values
from tests.factories.support import ROOT
from training.tune.space import load_tune, rounded, trial_params, with_keys

LARGE_GRID = {f"model.key{k}": {"choice": list(range(9))} for k in range(10)}
PARAMS = load_params(ROOT / "params.yaml")


def load(tmp_path: Path, **changes: Any) -> None:
    path = tmp_path / "tune.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(tune_values(**changes), file)
    load_tune(path, PARAMS)


def test_the_shipped_tune_yaml_fits_the_shipped_params_yaml() -> None:
    load_tune(ROOT / "tune.yaml", PARAMS)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"model.embeding_dim": {"choice": [4]}}, "space: model.embeding_dim: params.yaml has no"),
        ({"model.top_mlp.0": {"choice": [4]}}, "model.top_mlp.0: params.yaml has no such key"),
        ({"model": {"choice": [4]}}, "space: model: model: expected a mapping"),
        ({"model.embedding_dim": {"choice": [4, "8"]}}, "model.embedding_dim.*(found '8')"),
        ({"model.embedding_dim": {"choice": [4, 0]}}, "greater than 0 .found 0"),
        (
            {"train.dense_optimizer.lr": {"low": -1.0, "high": 1.0, "log": False}},
            "train.dense_optimizer.lr.*greater than 0",
        ),
        (
            {"train.batch_size": {"low": 16.0, "high": 64.0, "log": False}},
            "train.batch_size.*valid integer",
        ),
        (
            {"model.interaction": {"choice": [{"name": "cross", "layers": 2, "rank": 10**6}]}},
            "model.interaction.rank is 1000000",
        ),
        ({"data.days": {"choice": [3]}}, "a trial changes only model, train, features"),
        ({"train.seed": {"choice": [3]}}, "train.seed is a choice of luck"),
        ({"features.split.valid_days": {"choice": [1]}}, "decides which rows the logloss"),
        ({"train.devices": {"choice": [2]}}, "train.devices is 1 in a trial"),
        (
            {"train": {"choice": [{"seed": 7}]}},
            "train: train.accelerator is the same .*; write sin",
        ),
        (
            {
                "model.interaction": {"choice": [{"name": "dot"}]},
                "model.interaction.name": {"choice": ["dot", "cat"]},
            },
            "model.interaction.name is a part of model.interaction, which is there as well; remove",
        ),
        (
            {"train.epochs": {"low": 1, "high": 2.5, "log": False}},
            "one is a whole number and the other is not",
        ),
        ({"train.epochs": {"low": 3, "high": 2, "log": False}}, "low 3 is not below high 2"),
        ({"train.warmup_steps": {"low": 0, "high": 9, "log": True}}, "low 0 is not above 0"),
        ({"train.epochs": {"choice": []}}, "at least 1 item"),
        ({"train.epochs": {"choice": [1, 2, 1]}}, "choice has 1 twice"),
        (
            {"train.dense_optimizer.lr": {"low": "1", "high": 2.0, "log": True}},
            r"space\.train\.dense_optimizer\.lr.*low.*found '1'",
        ),
        ({"train.epochs": {"low": 3}}, "space.train.epochs"),
        ({}, "space: Dictionary should have at least 1 item"),
    ],
)
def test_a_wrong_value_of_the_space_is_named(
    space: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, space=space)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window": 1}, "window 1 is below parallel 2"),
        ({"objectives": ["macs"]}, "logloss comes first"),
        ({"objectives": ["logloss", "latency"]}, "objectives.1"),
        ({"objectives": ["logloss", "macs", "macs"]}, "each objective once"),
        ({"set": {"model.embedding_dim": 4}}, "stands in set and in space"),
        ({"set": {"model": {}}}, "model.embedding_dim is a part of model"),
        ({"threads": 5000}, "threads: Input should be less than or equal to 4096"),
        (
            {"sampler": {"name": "grid"}, "space": LARGE_GRID},
            "sampler grid: the space has 3,486,784,401 combinations, and at most 1,000,000",
        ),
        ({"set": {"train.epoch": 4}}, "set: train.epoch: params.yaml has no such key"),
        ({"set": {"train.epochs": 0}}, "set: train.epochs: train.epochs"),
        ({"sampler": {"name": "grid"}}, "train.dense_optimizer.lr is a range"),
        ({"sampler": {"name": "gp"}}, "Input should be one of"),
        ({"stop": {"name": "median", "startup": 3}}, "stop.warmup: missing"),
        ({"stop": {"name": "hyperband", "eta": 1, "min_share": 0.1}}, "stop.eta"),
        ({"confirm": {"best": 3, "seeds": 1}}, "confirm.seeds"),
        ({"trade": {"latency": 1}}, "trade.latency"),
        ({"prune": 3}, "prune: no such key"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, **changes)


def test_values_in_set_hold_for_the_check_of_the_space(tmp_path: Path) -> None:
    """A rank that is too large for the present embedding_dim fits a larger one."""
    cross = {"name": "cross", "layers": 2, "rank": 500}
    space = {"model.interaction": {"choice": [cross]}}
    with pytest.raises(ConfigError, match="rank is 500"):
        load(tmp_path, space=space)
    load(tmp_path, space=space, set={"model.embedding_dim": 64})


def test_a_trial_has_its_values_those_of_set_and_the_rest_of_params_yaml() -> None:
    base = PARAMS.model_dump(mode="json", by_alias=True)
    tune = make_tune(set={"train.epochs": 1})
    values = {
        "model.embedding_dim": 2,
        "model.top_mlp": [4],
        "train.dense_optimizer.lr": 0.01,
    }
    found = trial_params(base, tune, values).model_dump(mode="json", by_alias=True)
    assert found == with_keys(base, {**values, "train.epochs": 1})
    assert found != base
    assert check(Params, base, ROOT) == PARAMS


def test_a_preset_of_features_has_keys_like_a_section(tmp_path: Path) -> None:
    values = read_yaml(ROOT / "params.yaml") | {"features": "bars-x4"}
    path = tmp_path / "params.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(values, file)
    space = tmp_path / "tune.yaml"
    with space.open("w") as file:
        YAML(typ="safe").dump(tune_values(space={"features.min_count": {"choice": [2]}}), file)
    load_tune(space, load_params(path))


def test_numbers_are_rounded_inside_their_range() -> None:
    values = Range(low=0.0012345, high=0.98765, log=True)
    assert rounded(0.123456, values) == 0.123
    assert rounded(0.00123456, values) == 0.0012345, "not below the low end"
    assert rounded(0.98764, values) == 0.98765, "not above the high end"
