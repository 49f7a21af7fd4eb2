"""DVC with an S3-compatible store as its remote: push, pull, and a wrong key."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.factories.support import ROOT

pytestmark = pytest.mark.services
NUM_BYTES = 20_000_000  # more than one part of an upload


@pytest.fixture
def pushing(tmp_path: Path, environment: dict[str, str], store: dict[str, str]) -> Project:
    """A repository with a large file and the store as its remote.

    The bucket is created as in docker/compose.yaml.
    """
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


def test_pull_restores_what_was_pushed(pushing: Project) -> None:
    pushing.run("dvc", "push", "-q")
    before = (pushing.root / "large.bin").read_bytes()
    subprocess.run(
        ["rm", "-r", pushing.root / "large.bin", pushing.root / ".dvc/cache"], check=True
    )
    pushing.run("dvc", "pull", "-q")
    assert (pushing.root / "large.bin").read_bytes() == before


def test_a_wrong_key_is_refused(pushing: Project) -> None:
    with_wrong_key = Project(
        pushing.root, pushing.environment | {"AWS_SECRET_ACCESS_KEY": "guessed"}
    )
    assert "(403)" in with_wrong_key.run("dvc", "push", code=255)
