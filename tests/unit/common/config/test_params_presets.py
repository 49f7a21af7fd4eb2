"""The key `preset` of params.yaml: values of a named file replace those of several sections."""

from pathlib import Path
from typing import Any

import pytest

from common.config.loading import ConfigError, read_yaml
from common.config.params import PARAMS_PRESETS, load_params, params_json_schema, preset_names
from tests.factories.support import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
NAMES = preset_names(PARAMS_PRESETS)


def with_preset(directory: Path, value: str) -> Path:
    """Write a copy of params.yaml with another value of `preset`."""
    assert TEXT.count("preset: null") == 1
    path = directory / "params.yaml"
    path.write_text(TEXT.replace("preset: null", f"preset: {value}"), encoding="utf-8")
    return path


def replaced_values() -> list[tuple[str, str, str, Any]]:
    """Return preset, section, key and value of each value that a preset has."""
    return [
        (name, section, key, value)
        for name in NAMES
        for section, values in read_yaml(PARAMS_PRESETS / f"{name}.yaml").items()
        for key, value in values.items()
    ]


@pytest.mark.parametrize(("name", "section", "key", "value"), replaced_values())
def test_a_preset_replaces_a_value(
    tmp_path: Path, name: str, section: str, key: str, value: Any
) -> None:
    params = load_params(with_preset(tmp_path, name)).model_dump(by_alias=True)
    assert params[section][key] == value
    assert read_yaml(ROOT / "params.yaml")[section][key] != value  # else it replaces nothing


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_leaves_all_other_values(tmp_path: Path, name: str) -> None:
    shipped = load_params(ROOT / "params.yaml").model_dump(by_alias=True)
    params = load_params(with_preset(tmp_path, name)).model_dump(by_alias=True)
    for _, section, key, _ in (each for each in replaced_values() if each[0] == name):
        params[section][key] = shipped[section][key]
    assert params == shipped | {"preset": name}


def test_a_preset_changes_only_what_the_train_stage_depends_on() -> None:
    # DVC knows that the key `preset` has changed for this stage alone (dvc.yaml).
    assert {section for _, section, _, _ in replaced_values()} <= {"model", "train"}
    assert "preset" in read_yaml(ROOT / "dvc.yaml")["stages"]["train"]["params"]


def test_an_unknown_preset_is_refused_with_the_names_of_all(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"preset: there is no preset 'qualitty'; the presets are quality"
    ):
        load_params(with_preset(tmp_path, "qualitty"))


def test_a_preset_of_features_is_none_of_all_sections(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no preset 'dlrm-kaggle'"):
        load_params(with_preset(tmp_path, "dlrm-kaggle"))


def test_a_preset_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"params\.yaml: preset: .*\(found 5\)"):
        load_params(with_preset(tmp_path, "5"))


def test_a_section_that_is_no_mapping_is_still_reported(tmp_path: Path) -> None:
    path = with_preset(tmp_path, "quality")
    text = path.read_text(encoding="utf-8")
    start, end = text.index("\ntrain:"), text.index("\nevaluate:")
    path.write_text(f"{text[:start]}\ntrain: 1\n{text[end:]}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"train: expected a mapping \(found 1\)"):
        load_params(path)


def test_editors_know_the_names() -> None:
    assert params_json_schema()["properties"]["preset"]["anyOf"][0] == {"enum": NAMES}
