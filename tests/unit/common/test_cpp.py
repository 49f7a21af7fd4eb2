"""Libraries are loaded only from the user's own folder; all else is one line and slower code."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from common import cpp
from tests.factories.support import ROOT

SOURCE = 'extern "C" long seven() { return 7; }\n'
# A library whose loading leaves a trace, as another user might plant it.
PLANTED = """
#include <cstdio>
__attribute__((constructor)) static void run() { fclose(fopen("planted code ran", "w")); }
extern "C" long seven() { return 7; }
"""
# Loads libraries in a process of its own, and prints what happened at its end.
LOAD = """
import json, sys
from pathlib import Path
from typing import NamedTuple
from common import cpp
from common.logs import configure_logging
configure_logging()
cpp.FLAGS[:], cpp.VERSION_TIMEOUT_S = ["-shared", "-fPIC"], 5.0
results = []
for source in sys.argv[1:]:
    loaded = cpp.load_library(Path(source).stem, [Path(source)], {"seven": []})
    assert loaded is None or loaded.seven() == 7
    results.append([loaded is not None, cpp.reason_of(Path(source).stem)])
print(json.dumps(results))
"""

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


class Loaded(NamedTuple):
    """Whether all libraries could be loaded, why not, and the lines that were logged."""

    all: bool
    reason: str
    lines: list[str]

    def __bool__(self) -> bool:
        return self.all


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with a source file and a cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("CXX", cpp.LOGGED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "seven.cpp").write_text(SOURCE)
    return tmp_path


def load(*sources: str, before: Sequence[str] = ()) -> Loaded:
    """Load libraries in a new process, which must have no traceback."""
    command = [*before, sys.executable, "-c", LOAD, *(sources or ["seven.cpp"])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    *lines, last = run.stdout.splitlines()
    results = json.loads(last)
    assert all((reason is None) == was_loaded for was_loaded, reason in results)
    return Loaded(all(result[0] for result in results), results[0][1] or "", lines)


def library_in(place: Path) -> Path:
    (path,) = (place / "cache/clickmill").iterdir()
    return path


def plant(path: Path) -> None:
    """Put a working library of other code at a path, with a right hash."""
    Path("planted.cpp").write_text(PLANTED)
    assert load("planted.cpp")
    Path("planted code ran").unlink()
    (made,) = path.parent.glob("planted-*.so")
    made.replace(path)


def script(place: Path, text: str) -> str:
    """Write a program of the shell and return its path."""
    path = place / "compiler with spaces.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_library_is_compiled_once_and_is_this_users_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        assert load()
    finally:
        os.umask(before)
    path = library_in(place)
    for part in (path, path.parent):
        assert part.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH) == 0
    written_ns = path.stat().st_mtime_ns
    assert load()
    assert path.stat().st_mtime_ns == written_ns


def test_a_library_of_another_or_open_to_others_is_compiled_again(place: Path) -> None:
    load()
    path = library_in(place)
    plant(path)
    path.chmod(0o722)
    assert load()
    assert not Path("planted code ran").exists()
    target = path.with_name("elsewhere")
    plant(path)
    path.rename(target)
    path.symlink_to(target)
    assert load()
    assert not path.is_symlink()
    assert not Path("planted code ran").exists()
    path.unlink()
    os.mkfifo(path)
    assert load()
    if os.geteuid() == 0:
        plant(path)
        os.chown(path, 12345, -1)
        assert load()
        assert path.stat().st_uid == 0
        assert not Path("planted code ran").exists()


@pytest.mark.parametrize("size", [0, 1, 32, 33, 5000])
def test_an_incomplete_library_is_compiled_again(place: Path, size: int) -> None:
    load()
    path = library_in(place)
    path.write_bytes(path.read_bytes()[:size])
    assert load()
    assert path.stat().st_size > 5000


def test_a_flipped_byte_anywhere_is_noticed(place: Path) -> None:
    load()
    path = library_in(place)
    content = path.read_bytes()
    for position in range(0, len(content), len(content) // 50):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert not cpp._is_whole(path)
    path.write_bytes(content)
    assert cpp._is_whole(path)


@pytest.mark.parametrize("who", ["others", "group", "others may write to a parent"])
def test_a_folder_that_others_can_write_to_is_refused(place: Path, who: str) -> None:
    load()
    plant(library_in(place))
    folder = place / "cache/clickmill"
    changed = folder.parent if "parent" in who else folder
    changed.chmod(0o770 if who == "group" else 0o777)
    loaded = load()
    assert not loaded
    assert not Path("planted code ran").exists()
    assert f"{changed} can be written to by other users (mode 77" in loaded.reason
    assert "chmod go-w it, or set XDG_CACHE_HOME" in loaded.reason
    changed.chmod(0o755)
    place.chmod(0o1777)  # as /tmp
    assert load()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("folder", ["cache", "cache/clickmill"])
def test_a_folder_of_another_user_is_refused(place: Path, folder: str) -> None:
    load()
    os.chown(place / folder, 12345, -1)
    assert f"{place / folder} belongs to another user (12345)" in load().reason


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_an_empty_or_relative_cache_is_ignored(
    place: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cpp.cache_folder() == place / "home/.cache/clickmill"
    assert load()
    assert sorted(path.name for path in place.iterdir()) == ["home", "seven.cpp"]


BROKEN: dict[str, tuple[Callable[[Path], str], str]] = {
    "empty": (lambda _: "", "CXX is '', which names no compiler; install g"),
    "spaces": (lambda _: "  ", "CXX is '  ', which names no compiler"),
    "open quote": (lambda _: "g++ '", r'CXX is "g\+\+ \'", which is no command \(No closing quot'),
    "missing": (lambda _: "/nonexistent -x", "'/nonexistent' is no executable program; install"),
    "folder": (lambda place: str(place), "is no executable program"),
    "not executable": (lambda place: str(place / "seven.cpp"), "is no executable program"),
    "fails silently": (lambda place: script(place, "exit 3"), r"failed \(it exited with 3\)"),
    "not a program": (lambda place: of_bytes(place, b"\x7fELF garbage"), "cannot be run"),
    "no output": (lambda _: "true", "true made no file"),
    "garbage": (
        lambda place: script(place, r"printf '\033[31m\0\377 error: \007bad\n'; exit 1"),
        r"failed \(\?\[31m\?\ufffd error: \?bad\)",
    ),
    "endless": (lambda _: "yes --version; yes", "failed"),
    "endless output": (lambda place: script(place, "yes"), "failed"),
    "hangs": (lambda place: script(place, "sleep 100 | sleep 100"), "did not end within 5 s"),
    "text": (lambda place: script(place, f"{LAST} echo text > $file"), "cannot be loaded"),
    "nothing": (lambda place: script(place, f"{LAST} : > $file"), "cannot be loaded"),
    "truncated": (
        lambda place: script(place, f'{LAST} c++ "$@" && truncate -s 9000 "$file"'),
        "crashes when it is loaded|cannot be loaded",
    ),
    "crashes": (
        lambda place: script(
            place,
            f"{LAST} echo '__attribute__((constructor)) static void run() {{ __builtin_trap(); }}'"
            ' | c++ -shared -fPIC -x c++ - -o "$file"',
        ),
        "crashes when it is loaded",
    ),
    "other functions": (
        lambda place: script(place, f'{LAST} echo "int x;" | c++ -shared -x c++ - -o "$file"'),
        "cannot be loaded .*seven",
    ),
    "other machine's": (
        lambda place: script(
            place,
            f'{LAST} c++ "$@" && printf "\\267" | dd of="$file" bs=1 seek=18 conv=notrunc'
            " 2>/dev/null",
        ),
        "cannot be loaded",
    ),
}
# The file that the compiler shall make is its last argument; --version has none.
LAST = 'for file; do :; done; [ "$file" = --version ] && exit 0;'


def of_bytes(place: Path, content: bytes) -> str:
    path = place / "program"
    path.write_bytes(content)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("broken", BROKEN)
def test_an_odd_compiler_gives_one_line_with_the_reason(
    place: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    make, reason = BROKEN[broken]
    monkeypatch.setenv("CXX", make(place))
    started_s = time.monotonic()
    loaded = load("seven.cpp", "seven.cpp")
    assert time.monotonic() - started_s < 30
    assert not loaded
    (line,) = loaded.lines
    assert line.startswith("compile   warning: no compiled code, so slower code takes its place: ")
    assert line.isprintable()
    assert loaded.reason in line
    assert re.search(reason, line), line
    assert "install g++" in line
    assert not list(place.glob("cache/clickmill/*.tmp"))


def test_a_failed_compilation_shows_the_compilers_error(place: Path) -> None:
    (place / "seven.cpp").write_text('#include "missing.h"\n')
    assert "missing.h: No such file or directory" in load().reason
    (place / "seven.cpp").write_text(SOURCE)
    assert load()


def test_a_compiler_may_have_spaces_in_its_path_and_arguments(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", script(place, 'exec c++ "$@"'))
    assert load()
    monkeypatch.setenv("CXX", "env c++ -O1")
    assert load()
    assert len(list((place / "cache/clickmill").iterdir())) == 2


def test_child_processes_do_not_repeat_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent")
    monkeypatch.setenv(cpp.LOGGED, "1")
    loaded = load()
    assert (loaded.all, loaded.lines) == (False, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a name")
def test_a_user_without_a_name_and_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (place, *place.parents[:-1]):
        path.chmod(path.stat().st_mode | 0o055)
    setpriv = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    loaded = load(before=setpriv)
    assert "this user has no home folder; set HOME, or set XDG_CACHE_HOME" in loaded.reason
    assert loaded.lines
    monkeypatch.setenv("HOME", str(place / "home"))
    assert "home: Permission denied; set XDG_CACHE_HOME" in load(before=setpriv).reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("ro", "Read-only file system; set XDG_CACHE_HOME"),
        ("size=4k", "No space left on device"),
        ("noexec", "cannot be loaded .*set XDG_CACHE_HOME to a folder on a disk that is not"),
    ],
)
def test_a_home_that_cannot_be_used(
    place: Path, monkeypatch: pytest.MonkeyPatch, options: str, reason: str
) -> None:
    mount = f'mount -t tmpfs -o {options},mode=700 tmpfs home && exec "$@"'
    (place / "home").mkdir()
    unshare = ["unshare", "-m", "sh", "-c", mount, "sh"]
    if subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("this container may not mount")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(place / "home"))
    loaded = load(before=unshare)
    assert re.search(reason, loaded.reason), loaded.reason
    assert not loaded
