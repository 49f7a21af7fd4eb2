"""Each change that we make to DVC is still needed, and does what it says.

If plain DVC does not fail as these tests expect, upstream has changed, and our change can perhaps
be removed.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dvc.repo import Repo

from common.config.loading import ConfigError
from common.logs import configure_logging
from flows.adapters.dvc import (
    check_output_places,
    open_repo,
    remove_damaged_locks,
    wait_for_running_commands,
)
from flows.dvc_stages import environment_of
from tests.factories.support import ROOT

OURS = [sys.executable, "-m", "flows.adapters.dvc"]
PLAIN = [sys.executable, "-m", "dvc"]
# A process that ends gives back its memory and its locks some time before its parent learns of it.
# Less than what a process that is not waited for still runs: a second or more.
AT_ITS_END_S = 0.9
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
    (tmp_path / "input").write_text("1")
    (tmp_path / "make.py").write_text(COPY_INPUT)
    (tmp_path / "dvc.yaml").write_text(STAGE)
    with Repo.init(str(tmp_path), no_scm=True) as repo, repo.config.edit() as config:
        config["cache"]["type"] = ["symlink"]
        config["core"]["analytics"] = False
    with Repo(str(tmp_path)) as repo:  # it has the changed configuration
        repo.reproduce()
    assert (tmp_path / "out").is_symlink()
    return tmp_path


@pytest.fixture
def idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with a stage that has not run. It takes no process to make."""
    monkeypatch.chdir(tmp_path)
    Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / "dvc.yaml").write_text(STAGE)
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
    with pytest.raises(ConfigError, match=r"dvc\.lock contains the markers of a merge conflict"):
        remove_damaged_locks(repository)
    assert path.read_text() == conflict


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "dvc.yaml",
            "<<<<<<< ours\nstages: {}\n=======\n>>>>>>> theirs\n",
            r"dvc\.yaml contains the markers of a merge conflict; edit it",
        ),
        (
            "dvc.yaml",
            "stages:\n  make: [\n",
            r"dvc\.yaml is not YAML: .*, in line 3 or the line above; correct it, or restore it",
        ),
        (
            "dvc.yaml",
            "stages:\n  make:\n    colour: red\n    cmd: x\n",
            r"dvc\.yaml is not as DVC expects it: stages\.make\.colour: extra keys not allowed; ",
        ),
        ("dvc.yaml", b"\xff\xfe\x00", r"dvc\.yaml is not UTF-8; correct it, or restore it"),
        (
            "dvc.yaml",
            STAGE + STAGE.removeprefix("\nstages:").replace("make:", "again:"),
            "DVC: output 'out' is specified in:.*Use `dvc remove`",
        ),
        (".dvc/config", "[core\n", r"\.dvc/config: .*Invalid line .*; correct it"),
        (
            ".dvc/config.local",
            "[cache]\n    type = red\n",
            r"\.dvc/config.*: Unsupported cache type\(s\): red",
        ),
    ],
    ids=["conflict", "syntax", "unknown key", "bytes", "two outputs", "config", "value"],
)
def test_a_damaged_file_of_dvc_is_named_with_the_remedy(
    idle: Path, name: str, content: str | bytes, message: str
) -> None:
    (idle / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=message) as error, open_repo(idle) as repo:
        assert repo.index.graph
    assert "\n" not in str(error.value)


def test_a_folder_without_dvc_of_its_own_is_refused(idle: Path, tmp_path: Path) -> None:
    inner = idle / "inner"
    inner.mkdir()
    message = rf"{inner} has no folder \.dvc .*found is in {idle}.*dvc init --subdir"
    with pytest.raises(ConfigError, match=message), open_repo(inner):
        pass
    shutil.rmtree(idle / ".dvc")
    message = rf"{idle} has no folder \.dvc .*restore it: `git checkout -- \.dvc`"
    with pytest.raises(ConfigError, match=message), open_repo(idle):
        pass


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (b"a:b", "':'"),
        (b"a{b}", "'{'"),
        (b"a\nb", r"'\\n'"),
        (b"caf\xe9", r"'\\udce9'"),
    ],
)
def test_a_folder_name_that_dvc_cannot_handle_is_refused(
    tmp_path: Path, name: bytes, found: str
) -> None:
    root = tmp_path / os.fsdecode(name)
    root.mkdir()
    with pytest.raises(ConfigError, match=f"contains {found}, .*; rename the folder") as error:
        open_repo(root).__enter__()
    assert str(error.value).isprintable()


def test_any_other_folder_name_is_used(tmp_path: Path) -> None:
    name = '-a [1]*? %s% #$HOME it\'s "it" ä'
    root = tmp_path / name
    root.mkdir()
    Repo.init(str(root), no_scm=True).close()
    (root / "dvc.yaml").write_text(STAGE.replace("python make.py", "cp input out"))
    (root / "input").write_text("1")
    subprocess.run(
        [*OURS, "repro", "-q"], cwd=root, env=os.environ | environment_of(ROOT), check=True
    )
    assert (root / "out").read_text() == "1"
    remove_damaged_locks(root)
    with open_repo(root) as repo:
        assert repo.status() == {}


def test_a_repository_without_git_is_refused(idle: Path) -> None:
    (idle / ".dvc/config").write_text("")  # without core.no_scm
    message = r"is not a git repository, and DVC needs one; run `git init` there"
    with pytest.raises(ConfigError, match=message), open_repo(idle) as repo:
        assert repo.index.graph


def test_outputs_that_dvc_could_not_keep_are_refused_at_the_start(idle: Path) -> None:
    (idle / "elsewhere").mkdir()
    (idle / "artifacts").symlink_to("elsewhere")
    message = "artifacts is a link to elsewhere, .*`dvc cache dir PATH`"
    with open_repo(idle) as repo, pytest.raises(ConfigError, match=message):
        check_output_places(repo)
    (idle / "artifacts").unlink()
    with open_repo(idle) as repo:
        check_output_places(repo)
    (idle / ".dvc/cache").touch()
    message = r"DVC's cache .*/\.dvc/cache cannot be written.*chown or chmod it"
    with open_repo(idle) as repo, pytest.raises(ConfigError, match=message):
        check_output_places(repo)


def test_the_lock_of_another_dvc_command_is_waited_for(
    idle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """DVC itself waits three seconds, and its message does not say which lock."""
    configure_logging()
    with holding_lock(idle) as holder:
        refused = subprocess.run([*PLAIN, "status"], capture_output=True, text=True, check=False)
        assert "Unable to acquire lock" in refused.stderr, "DVC waits by itself"
        threading.Timer(4, holder.terminate).start()
        remove_damaged_locks(idle)
        holder.wait(AT_ITS_END_S)
    said = capfd.readouterr().out
    assert f"holds {idle}/.dvc/tmp/lock; this one waits for its end" in said


def test_a_dvc_command_that_works_on_an_output_is_waited_for(idle: Path) -> None:
    """It holds no lock meanwhile, only a line in DVC's table."""
    with subprocess.Popen(["sleep", "3"]) as other:
        write_table(idle, other.pid, "dvc repro")
        lines: list[str] = []
        wait_for_running_commands(idle, lines.append)
        other.wait(AT_ITS_END_S)
    (line,) = lines
    assert line == f"another DVC command is active: process {other.pid} (dvc repro); this one waits"
    assert not (idle / ".dvc/tmp/rwlock").exists()


def test_a_dvc_command_is_waited_for_after_the_clock_was_set_forward(idle: Path) -> None:
    """Then it seems to have begun after it wrote its entry, as a process with its id would."""
    code = "import time; time.sleep(3)"
    with subprocess.Popen([sys.executable, "-c", code, "repro"]) as other:
        os.utime(write_table(idle, other.pid, "/usr/bin/dvc repro"), (0, 0))
        lines: list[str] = []
        wait_for_running_commands(idle, lines.append)
        other.wait(AT_ITS_END_S)
    assert len(lines) == 1


def test_a_process_with_the_id_of_a_killed_command_is_not_waited_for(idle: Path) -> None:
    """In a new container the ids of the old one are soon given again."""
    table = write_table(idle, os.getpid(), "dvc repro")
    os.utime(table, (0, 0))  # written long before this process began
    refused = subprocess.run([*PLAIN, "repro"], capture_output=True, text=True, check=False)
    assert "is busy" in refused.stderr, "DVC finds it out by itself"
    os.utime(table, (0, 0))
    lines: list[str] = []
    wait_for_running_commands(idle, lines.append)
    assert lines == []
    assert not table.exists()


@contextmanager
def holding_lock(repository: Path) -> "Iterator[subprocess.Popen[str]]":
    """Run a process that holds DVC's lock of the repository until it is ended."""
    code = """
import time
from dvc.repo import Repo
with Repo() as repo, repo.lock:
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=repository, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


def write_table(repository: Path, pid: int, command: str) -> Path:
    """Write DVC's table of running processes, with one that writes the output."""
    path = repository / ".dvc/tmp/rwlock"
    entry = {"pid": pid, "cmd": command}
    path.write_text(json.dumps({"write": {str(repository / "out"): entry}}))
    return path
