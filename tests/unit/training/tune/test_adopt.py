"""A trial's values are written into params.yaml, and nothing else changes."""

import re
import shutil
from pathlib import Path

import pytest

from common.checked_json import write_checked_json
from common.config.loading import ConfigError
from common.config.params import load_params
from common.files import DataError
from tests.factories.studies import InlinePool, make_study, outcome
from tests.factories.support import ROOT
from training.tune.adopt import adopt
from training.tune.outcome import Outcome
from training.tune.study_files import LAST_STUDY, SETTINGS, STUDIES
from training.tune.trial import Task

GOOD, FAILS = 1, 0  # the numbers of trials


def run(task: Task) -> Outcome:
    if task.title == f"trial {FAILS}":
        return Outcome(result=None, error="Diverged: x")
    return outcome([0.5])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a study of which some trials failed."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    study = make_study(tmp_path, set={"train.epochs": 2})
    with study.opened(), InlinePool(2, run) as pool:
        trials = study.search(pool)
    assert [bool(one.outcome.error) for one in trials[:3]] == [k == FAILS for k in range(3)]
    return tmp_path


def test_just_the_lines_of_the_values_change(root: Path) -> None:
    path = root / "params.yaml"
    before = path.read_text().splitlines()
    diff = adopt(root, GOOD, None).splitlines()
    after = path.read_text().splitlines()
    added = [line[1:] for line in diff if line.startswith("+") and not line.startswith("+++")]
    names = ["embedding_dim:", "top_mlp:", "epochs:", "dense_optimizer:"]
    assert [line.split()[0] for line in added] == names
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert changed == added
    assert any(re.match(r"  embedding_dim: [24]          # D, also", line) for line in changed)
    assert load_params(path).train.epochs == 2
    assert load_params(path).train.warm_start_from is None
    assert adopt(root, GOOD, None) == "", "a second time nothing is left to change"


def test_line_ends_of_windows_stay(root: Path) -> None:
    path = root / "params.yaml"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    num_lines = path.read_bytes().count(b"\r\n")
    assert adopt(root, GOOD, None)
    assert path.read_bytes().count(b"\r\n") == path.read_bytes().count(b"\n") == num_lines


def test_a_key_that_params_yaml_has_no_more_is_named(root: Path) -> None:
    path = root / "params.yaml"
    text = path.read_text()
    path.write_text(text.replace("{name: dot}", "{name: cross, layers: 2, rank: 4}", 1))
    space = {"model.interaction.layers": {"choice": [1, 3]}}
    study = make_study(root, load_params(path), space=space, confirm=None)
    with study.opened(), InlinePool(1, lambda task: outcome([0.5])) as pool:
        study.search(pool)
    path.write_text(text)
    with pytest.raises(
        ConfigError, match=r"params\.yaml: one of model\.interaction\.layers is not"
    ):
        adopt(root, GOOD, None)
    assert path.read_text() == text


@pytest.mark.parametrize("name", [LAST_STUDY, SETTINGS])
def test_a_file_of_other_contents_is_damaged(name: str, root: Path) -> None:
    (path,) = (root / STUDIES).rglob(name)
    write_checked_json(path, {"other": 1})
    with pytest.raises(DataError, match=rf"{name} is damaged; run clickmill tune again"):
        adopt(root, GOOD, None)


def test_a_study_can_be_named(root: Path) -> None:
    study = next(path.name for path in (root / STUDIES).iterdir() if path.is_dir())
    (root / STUDIES / LAST_STUDY).unlink()
    with pytest.raises(ConfigError, match=r"there is no study in .*; run clickmill tune first"):
        adopt(root, GOOD, None)
    assert adopt(root, GOOD, study)
    with pytest.raises(ConfigError, match=r"there is no study '\.\./x' in"):
        adopt(root, GOOD, "../x")


def test_a_failed_or_missing_trial_is_refused(root: Path) -> None:
    before = (root / "params.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"trial 0 failed \(Diverged: x\); take another one"):
        adopt(root, FAILS, None)
    with pytest.raises(ConfigError, match="has no trial 99; it has 8 trials, from 0"):
        adopt(root, 99, None)
    assert (root / "params.yaml").read_bytes() == before


def test_a_section_that_is_a_preset_is_left_alone(root: Path) -> None:
    path = root / "params.yaml"
    text = path.read_text()
    start, end = text.index("features:  "), text.index("# Limits for unusual")
    path.write_text(text[:start] + "features: bars-x4\n" + text[end:])
    study = make_study(
        root, load_params(path), space={"features.min_count": {"choice": [7]}}, confirm=None
    )
    study.features.root_for = lambda params: root  # type: ignore[method-assign]
    with study.opened(), InlinePool(1, lambda task: outcome([0.5])) as pool:
        study.search(pool)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"features\.min_count: there is no such key"):
        adopt(root, GOOD, None)
    assert path.read_bytes() == before


def test_a_damaged_study_is_named(root: Path) -> None:
    path = root / STUDIES / LAST_STUDY
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(DataError, match=r"last\.json is damaged; run clickmill tune again"):
        adopt(root, GOOD, None)
