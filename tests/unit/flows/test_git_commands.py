"""Nightly runs are recorded whatever a user's git settings, hooks and environment are.

Each test records two runs, registers their models and promotes one, as the end of a nightly run
does.
"""

import os
import subprocess
from pathlib import Path

import pytest

from common.config.loading import ConfigError
from flows.git_commands import CHECK_REF, Git, GitError, forget_calling_git
from flows.nightly.repository import NightlyRepository
from tests.factories.nightly_runs import NOW, finish_run, make_repository

HOOKS = (
    *("pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "post-checkout"),
    *("reference-transaction", "pre-push", "pre-auto-gc"),
)
SETTINGS = {
    "signed with OpenPGP": """
        [commit]
            gpgSign = true
        [tag]
            gpgSign = true
            forceSignAnnotated = true
        [user]
            signingKey = 0000000000000000
    """,
    "signed with SSH": "[gpg]\nformat = ssh\n[commit]\ngpgSign = true\n[tag]\ngpgSign = true",
    "hooks": "[core]\nhooksPath = FOLDER/hooks",
    "hooks of a template": "[init]\ntemplateDir = FOLDER",
    "line ends": "[core]\nautocrlf = true\nsafecrlf = true\neol = crlf",
    "file system monitor": "[core]\nfsmonitor = FOLDER/hooks/pre-commit",
    "ignored files": "[core]\nexcludesFile = FOLDER/ignored",
    "message": "[commit]\ntemplate = FOLDER/ignored\ncleanup = strip\n[core]\ncommentChar = N",
    "columns": "[column]\nui = always\n[color]\nui = always\n[tag]\nsort = -taggerdate",
    "diff": "[diff]\nexternal = FOLDER/hooks/pre-commit\nnoprefix = true\nrelative = false",
    "no protocol": "[protocol]\nallow = never",
    "encoding": "[i18n]\ncommitEncoding = ISO-8859-1\nlogOutputEncoding = ISO-8859-1",
    "no name": "[user]\nuseConfigOnly = true",
    "log": "[log]\nshowSignature = true\n[format]\npretty = oneline",
}
REASON = "auc: 0.71 → 0.70, größer als erlaubt"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NightlyRepository:
    """A repository without nightly runs, and a user whose git has no settings."""
    for name in os.environ:
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    return make_repository(tmp_path / "project")


def record_two_runs(repository: NightlyRepository) -> None:
    """Record a promoted and a rejected run, and check everything that git contains of them."""
    version = finish_run(repository, 1, "promoted", NOW, [REASON])
    finish_run(repository, 2, "rejected", NOW)
    runs = repository.runs()
    assert [(run.number, run.outcome) for run in runs] == [(1, "promoted"), (2, "rejected")]
    assert runs[0].reasons == [REASON]
    (assignment,) = repository.assignments()
    assert (assignment.run, assignment.reason) == (1, runs[0].headline)
    assert repository.production_version() == version
    tags = ["dlrm@v1.0.0", "dlrm@v2.0.0", "dlrm#production#1", "night/0001", "night/0002"]
    assert sorted(repository.git.tags("**")) == sorted(tags)
    for tag in tags:
        assert "-----BEGIN" not in repository.git.run("cat-file", "-p", tag)
    assert repository.uncommitted_files() == []
    (repository.root / "params.yaml").write_text("other")
    assert repository.uncommitted_files() == ["params.yaml"]


@pytest.mark.parametrize("settings", SETTINGS)
def test_no_setting_of_the_user_ends_a_nightly_run(
    repository: NightlyRepository, tmp_path: Path, settings: str
) -> None:
    hooks = tmp_path / "folder/hooks"
    hooks.mkdir(parents=True)
    for name in HOOKS:
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
        (repository.root / ".git/hooks" / name).write_text("#!/bin/sh\nexit 1\n")
        (repository.root / ".git/hooks" / name).chmod(0o755)
    (tmp_path / "folder/ignored").write_text("*.json\nruns\nartifacts\n")
    text = SETTINGS[settings].replace("FOLDER", str(tmp_path / "folder"))
    (tmp_path / "gitconfig").write_text(text)
    (repository.root / ".git/config").open("a").write(text)
    repository.git.check_writable()
    record_two_runs(repository)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GIT_DIR", "/nonexistent"),
        ("GIT_WORK_TREE", "/tmp"),
        ("GIT_INDEX_FILE", "/nonexistent/index"),
        ("GIT_OBJECT_DIRECTORY", "/nonexistent/objects"),
        ("GIT_QUARANTINE_PATH", "/nonexistent"),
        ("GIT_COMMITTER_DATE", "no date"),
        ("GIT_EXTERNAL_DIFF", "false"),
        ("GIT_CONFIG_PARAMETERS", "'commit.gpgsign=true' 'tag.gpgsign=true'"),
        ("LC_ALL", "de_DE.UTF-8"),
    ],
)
def test_no_variable_of_a_calling_hook_ends_a_nightly_run(
    repository: NightlyRepository, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    forget_calling_git()
    record_two_runs(repository)


def test_locks_of_a_killed_git_are_removed_from_our_refs_only(
    repository: NightlyRepository,
) -> None:
    refs = repository.root / ".git/refs"
    ours = [refs / "clickmill/unpushed/0001.lock", refs / "tags/night/0001.lock"]
    others = [refs / "heads/main.lock", refs / "tags/v1.lock"]
    for path in (*ours, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    repository.apply_records()
    assert [path for path in (*ours, *others) if path.exists()] == others
    record_two_runs(repository)


def test_what_the_end_of_a_run_needs_is_checked_at_its_start(
    repository: NightlyRepository,
) -> None:
    lines: list[str] = []
    with pytest.raises(ConfigError, match=r"dvc\.yaml is not in the last commit.*git add"):
        repository.check(lines.append)
    (repository.root / "dvc.yaml").write_text("stages: {}\n")
    repository.git.run("add", "dvc.yaml")
    repository.git.commit("dvc.yaml")
    repository.check(lines.append)
    assert repository.git.run("for-each-ref", CHECK_REF) == ""
    assert lines == []
    (repository.root / ".git/packed-refs.lock").touch()
    with pytest.raises(GitError, match=r"packed-refs\.lock': File exists"):
        repository.check(lines.append)


def test_an_operation_in_progress_is_named(repository: NightlyRepository) -> None:
    git = repository.git
    for name in ("dvc.yaml", "file"):
        (repository.root / name).write_text("1")
    git.run("add", "dvc.yaml", "file")
    git.commit("first")
    for branch, text in (("other", "2"), ("mine", "3")):
        git.run("checkout", "-q", "-b", branch, "HEAD" if branch == "other" else "HEAD~1")
        (repository.root / "file").write_text(text)
        git.commit(branch, "--all")
    lines: list[str] = []
    with pytest.raises(GitError, match="Merge conflict in file"):
        git.run("merge", "other")
    repository.check(lines.append)
    git.run("merge", "--abort")
    with pytest.raises(GitError, match="could not apply"):
        git._run_as(git.author(), "rebase", "other")
    repository.check(lines.append)
    assert [line.split(" is in progress")[0] for line in lines] == ["a merge", "a rebase"]


def test_a_folder_of_a_larger_repository_has_nightly_runs_of_its_own(
    repository: NightlyRepository, tmp_path: Path
) -> None:
    larger = tmp_path / "larger"
    root = larger / "team 1/project"
    root.parent.mkdir(parents=True)
    repository.root.rename(root)
    (root / ".git").rename(larger / ".git")
    (larger / "README").write_text("1")
    (larger / "other").mkdir()
    git = Git(larger)
    git.run("add", "-A")
    git.commit("all")
    inner = NightlyRepository(root)
    assert inner.git.prefix() == Path("team 1/project")
    assert inner.git.top() == larger
    (larger / "README").write_text("not of this project")
    record_two_runs(inner)
    paths = git.run("diff", "--name-only", "HEAD", "night/0001")
    assert paths == "team 1/project/night.json"
    message = "another project of this git repository has nightly runs"
    with pytest.raises(ConfigError, match=message):
        NightlyRepository(larger / "other").check_committed()


def test_a_fault_that_the_user_can_mend_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git, lines = Git(tmp_path), []
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(GitError, match="is not in a git repository; run `git init`") as error:
        git.run("log")
    lines.append(str(error.value))
    git.run("init", "-q")
    with pytest.raises(ConfigError, match=r"no commit yet.*run `git add -A`") as no_commit:
        NightlyRepository(tmp_path).check(lines.append)
    lines.append(str(no_commit.value))
    with pytest.raises(GitError, match="unknown revision") as error:
        git.run("diff", "HEAD")
    lines.append(str(error.value))
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(GitError, match=r"belongs to another user; .*safe\.directory") as error:
        git.run("log")
    lines.append(str(error.value))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitError, match="the program git is not found on PATH; install") as error:
        git.run("log")
    lines.append(str(error.value))
    assert all("\n" not in line for line in lines)


def test_the_clone_has_the_bytes_of_the_commit(
    repository: NightlyRepository, tmp_path: Path
) -> None:
    """With core.autocrlf, the user's own checkout has other line ends."""
    (tmp_path / "gitconfig").write_text("[core]\nautocrlf = true\n")
    clone = repository.make_clone("HEAD", None, {})
    committed = subprocess.run(
        ["git", "cat-file", "blob", "HEAD:params.yaml"],
        cwd=repository.root,
        capture_output=True,
        check=True,
    ).stdout
    assert b"\r" not in committed
    assert (clone.root / "params.yaml").read_bytes() == committed
