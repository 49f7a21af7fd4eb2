"""Each change that we make to DVC is still needed, and does what it says.

If plain DVC does not fail as these tests expect, upstream has changed, and our change can perhaps
be removed.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.adapters.dvc import remove_damaged_locks

OURS = [sys.executable, "-m", "flows.adapters.dvc"]
PLAIN = [sys.executable, "-m", "dvc"]
STAGE = """
stages:
  make:
    cmd: python make.py
    deps: [input]
    outs: [out: {persist: true}]
"""
COPY_INPUT = """
import os, shutil
shutil.copy("input", "new")
os.replace("new", "out")
"""
PRINT_WHETHER_LINK = """
import os
print("is a link:", os.path.islink("out") or os.stat("out").st_nlink > 1)
"""
DAMAGED_LOCK = """\
schema: '2.0'
stages:
  make:
    cmd: x
    deps:
    - path: input
      ha"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository whose only output is a link into the cache."""
    monkeypatch.chdir(tmp_path)
    for command in (
        ["init", "--no-scm", "-q"],
        ["config", "cache.type", "symlink"],
        ["config", "core.analytics", "false"],
    ):
        subprocess.run([*PLAIN, *command], check=True)
    (tmp_path / "input").write_text("1")
    (tmp_path / "make.py").write_text(COPY_INPUT)
    (tmp_path / "dvc.yaml").write_text(STAGE)
    subprocess.run([*PLAIN, "repro", "-q"], check=True)
    assert (tmp_path / "out").is_symlink()
    return tmp_path


@pytest.mark.parametrize(("dvc", "is_link"), [(PLAIN, False), (OURS, True)], ids=["dvc", "ours"])
def test_a_stage_begins_with_links_where_dvc_would_copy(
    repository: Path, dvc: list[str], is_link: bool
) -> None:
    (repository / "make.py").write_text(PRINT_WHETHER_LINK)
    (repository / "input").write_text("2")
    done = subprocess.run([*dvc, "repro"], capture_output=True, text=True, check=False)
    assert f"is a link: {is_link}" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dvc.lock", DAMAGED_LOCK),
        (".dvc/tmp/rwlock", '{"/out": {"write": {"pid": 1,'),
    ],
    ids=["dvc.lock", "rwlock"],
)
def test_a_file_that_a_kill_cut_short_is_removed(repository: Path, name: str, content: str) -> None:
    (repository / name).write_text(content)
    (repository / "input").write_text("2")
    refused = subprocess.run([*PLAIN, "repro"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0, "DVC repairs it by itself"
    remove_damaged_locks(repository)
    subprocess.run([*PLAIN, "repro", "-q"], check=True)
    assert (repository / "out").read_text() == "2"


def test_a_merge_conflict_is_left_to_the_user(repository: Path) -> None:
    path = repository / "dvc.lock"
    conflict = f"<<<<<<< ours\n{path.read_text()}=======\n>>>>>>> theirs\n"
    path.write_text(conflict)
    remove_damaged_locks(repository)
    assert path.read_text() == conflict
