"""DVC's data at an S3-compatible store that knows its users: pushed, fetched again, and refused to a stranger."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.factories.support import ROOT

pytestmark = pytest.mark.services
NUM_BYTES = 20_000_000  # more than one part


@pytest.fixture
def pushing(tmp_path: Path, environment: dict[str, str], store: dict[str, str]) -> Project:
    """A repository with a large file and the store as its remote; the bucket is made as docker/compose.yaml has it made."""
    root = tmp_path / "project"
    root.mkdir()
    project = Project(root, environment | store)
    project.run(sys.executable, str(ROOT / "docker" / "make_bucket.py"), "clickmill")
    (root / "large.bin").write_bytes(bytes(range(256)) * (NUM_BYTES // 256))
    for command in (
        "git init -q",
        "dvc init -q",
        "dvc add -q large.bin",
        "dvc remote add -q --default s3 s3://clickmill",
    ):
        project.run(*command.split())
    return project


def test_what_was_pushed_comes_back(pushing: Project) -> None:
    pushing.run("dvc", "push", "-q")
    before = (pushing.root / "large.bin").read_bytes()
    subprocess.run(
        ["rm", "-r", pushing.root / "large.bin", pushing.root / ".dvc/cache"], check=True
    )
    pushing.run("dvc", "pull", "-q")
    assert (pushing.root / "large.bin").read_bytes() == before


def test_a_stranger_is_refused(pushing: Project) -> None:
    stranger = Project(pushing.root, pushing.environment | {"AWS_SECRET_ACCESS_KEY": "guessed"})
    assert "(403)" in stranger.run("dvc", "push", code=255)
