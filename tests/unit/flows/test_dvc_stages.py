"""A dvc.yaml without all stages is refused: nothing in it would be stale, and nothing would run."""

from pathlib import Path

import pytest
from dvc.repo import Repo

from common.config.loading import ConfigError
from flows.dvc_stages import STAGES, stage_names, up_to_date
from tests.factories.support import ROOT, make_params


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A DVC repository with the stages of this one."""
    Repo.init(str(tmp_path), no_scm=True).close()
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    return tmp_path


def test_the_stages_are_those_of_dvc_yaml(root: Path) -> None:
    assert stage_names(root) == list(STAGES)


@pytest.mark.parametrize("content", ["", None, "stages: {}\n"], ids=["empty", "missing", "none"])
def test_a_dvc_yaml_without_stages_is_refused(root: Path, content: str | None) -> None:
    if content is None:
        (root / "dvc.yaml").unlink()
    else:
        (root / "dvc.yaml").write_text(content)
    message = (
        r"dvc\.yaml has no stage collect, ingest, features, train, evaluate, export; restore it"
    )
    for ask in (stage_names, lambda root: up_to_date(make_params(), root)):
        with pytest.raises(ConfigError, match=message):
            ask(root)


def test_a_missing_stage_is_named(root: Path) -> None:
    text = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(text.replace("\n  evaluate:", "\n  judge:"))
    with pytest.raises(ConfigError, match=r"dvc\.yaml has no stage evaluate; restore it"):
        stage_names(root)
