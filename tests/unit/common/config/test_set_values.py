"""Single values of a YAML file are changed, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.loading import ConfigError, read_yaml
from common.config.set_values import with_values
from tests.factories.support import ROOT

TEXT = """# A comment.
data:
  source: sample    # the log
  until: null       # stays as it is
  "quoted key": 'a # no comment'
model:
  # above
  loss:              # beside
    name: bce        # inside
    weight: 1
  # below the block
  top_mlp: [512, 256]   # widths
  interaction: {name: dot}
  parts:
    - one
    - two   # the last

train: {epochs: 4, lr: 1e-3}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with TEXT."""
    path = tmp_path / "some.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_only_the_value_changes(path: Path) -> None:
    found = with_values(
        path,
        {
            "data.source": "a: b # c",
            "model.top_mlp": [64],
            "model.interaction": {"name": "cross", "layers": 2, "rank": None},
            "train.lr": 0.00025,
            "data.until": 5,
        },
    )
    expected = (
        TEXT.replace("source: sample ", 'source: "a: b # c" ')
        .replace("[512, 256]", "[64]")
        .replace("{name: dot}", "{name: cross, layers: 2, rank: null}")
        .replace("1e-3", "0.00025")
        .replace("until: null", "until: 5")
    )
    assert found == expected


def test_a_value_of_several_lines_is_replaced_and_the_comments_after_it_stay(path: Path) -> None:
    found = with_values(path, {"model.loss": {"name": "focal"}, "model.parts": ["three"]})
    assert "  # below the block\n  top_mlp" in found
    assert "# beside\n    {name: focal}" in found
    path.write_text(found, encoding="utf-8")
    values = read_yaml(path)
    assert values["model"]["loss"] == {"name": "focal"}
    assert values["model"]["parts"] == ["three"]
    assert values["train"] == {"epochs": 4, "lr": 1e-3}


@pytest.mark.parametrize("key", ["data.sauce", "data.source.x", "nothing", "model.top_mlp.0"])
def test_a_key_that_is_not_there_is_named(key: str, path: Path) -> None:
    with pytest.raises(ConfigError, match=f"some.yaml: {key}: there is no such key"):
        with_values(path, {key: 1})


def test_an_alias_is_refused(path: Path) -> None:
    path.write_text("a: &x {b: 1}\nc: *x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="c: there is no such key with a value of its own"):
        with_values(path, {"c": 2})


SCALARS = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
VALUES = st.recursive(
    SCALARS.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=5,
)


@given(VALUES, st.sampled_from(["model.top_mlp", "model.loss", "train.epochs", "sample.seed"]))
@settings(max_examples=60, deadline=None)
def test_any_value_is_read_back_from_params_yaml(value: Any, key: str) -> None:
    text = with_values(ROOT / "params.yaml", {key: value})
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(text, encoding="utf-8")
        found = read_yaml(path)
    expected = read_yaml(ROOT / "params.yaml")
    section, name = key.split(".")
    assert found[section][name] == value
    found[section][name] = expected[section][name]
    assert found == expected
