"""Compiles C++ files to a shared library, once per machine, and loads it with ctypes.

The library is kept in the user's cache (XDG_CACHE_HOME) under a hash of everything that decides it.
No network is needed. CXX names the compiler; CXXFLAGS is not read, because the compilers of Conda
set it to the flags of an old CPU.

The code of a library is executed, so it is loaded only from a folder and a file that nobody else
can write to. A file ends with the SHA-256 of the bytes before, so a damaged one is noticed and
compiled again. What cannot be compiled or loaded is logged in one line, and the caller uses slower
code.
"""

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer
from uuid import uuid4

from common.logs import get_logger

log = get_logger("compile")

FLAGS = ["-std=c++17", "-O3", "-shared", "-fPIC"]
INSTALL = "install g++, or set CXX to a C++ compiler"
OWN_FOLDER = "set XDG_CACHE_HOME to a folder that is yours alone"
DIGEST_BYTES = 32  # of the SHA-256 at the end of a file
VERSION_TIMEOUT_S, COMPILE_TIMEOUT_S = 30.0, 600.0  # under load and on an emulated CPU as well
MAX_OUTPUT_BYTES = 1 << 20
# Environment variable that is set once the line is logged, so that child processes do not repeat it
LOGGED = "CLICKMILL_COMPILE_LOGGED"
# It loads a library, in a process of its own, and ends normally unless that crashes.
TRY_TO_LOAD = """
import ctypes, sys
try:
    ctypes.CDLL(sys.argv[1])
except OSError:
    pass
"""

Signatures = Mapping[str, Sequence[type]]
"""The argument types of the extern "C" functions of a library, which all return an int64."""

_reasons: dict[str, str] = {}


class NoLibraryError(RuntimeError):
    """A library cannot be compiled or loaded. The message says why, with the remedy."""


def load_library(
    name: str,
    sources: Sequence[Path],
    signatures: Signatures,
    *,
    headers: Sequence[Path] = (),
    flags: Sequence[str] = (),
) -> ctypes.CDLL | None:
    """Load a library, compiled if this machine has not done so before.

    Args:
        name: The beginning of its file name.
        sources: The .cpp files.
        signatures: Its functions.
        headers: The files that the sources include.
        flags: Flags of the compiler, beside FLAGS.

    Returns:
        The library; None if it cannot be compiled or loaded. The reason is logged then, once for
        this process and its children, and `reason_of` returns it.
    """
    try:
        compiler = _compiler()
        command = [*compiler, *FLAGS, *flags]
        version = _output_of([*compiler, "--version"], VERSION_TIMEOUT_S)
        key = _key([*sources, *headers], command, version)
        path = _own_folder() / f"{name}-{key}.so"
        if not _is_whole(path):
            _compile(command, sources, path)
        loaded = _load(path, signatures)
        _reasons.pop(name, None)
        return loaded
    except NoLibraryError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename or 'the cache of libraries'}: {error.strerror}; {OWN_FOLDER}"
    _reasons[name] = reason
    if LOGGED not in os.environ:
        os.environ[LOGGED] = "1"
        log.warning(f"no compiled code, so slower code takes its place: {reason}")
    return None


def reason_of(name: str) -> str | None:
    """Return why a library could not be loaded, with the remedy; None if it could, or was not."""
    return _reasons.get(name)


def cache_folder() -> Path:
    """Return the folder of the libraries, which may not exist yet.

    The XDG Base Directory Specification says that an empty or relative XDG_CACHE_HOME is ignored.

    Raises:
        NoLibraryError: There is no home folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        try:
            cache = Path.home() / ".cache"
        except RuntimeError:  # HOME is not set, and this user has no name
            cache = Path()
    if not cache.is_absolute():
        raise NoLibraryError(f"this user has no home folder; set HOME, or {OWN_FOLDER}")
    return cache / "clickmill"


def _compiler() -> list[str]:
    """Return the compiler's command: CXX is a path, or a command with arguments."""
    text = os.environ.get("CXX")
    if text is None:
        if shutil.which("c++") is None:
            raise NoLibraryError(f"there is no C++ compiler (c++ is not found); {INSTALL}")
        return ["c++"]
    if shutil.which(text):
        return [text]
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise NoLibraryError(
            f"CXX is {text!r}, which is no command ({error}); {INSTALL}, or unset it"
        ) from None
    if not words:
        raise NoLibraryError(f"CXX is {text!r}, which names no compiler; {INSTALL}, or unset it")
    if shutil.which(words[0]) is None:
        raise NoLibraryError(
            f"CXX is {text!r}, but {words[0]!r} is no executable program; {INSTALL}, or unset it"
        )
    return words


def _output_of(command: Sequence[str], timeout_s: float) -> bytes:
    """Return what the compiler printed.

    Raises:
        NoLibraryError: It could not be started, failed, took too long or printed without end.
    """
    shown = shlex.join(command[:1])
    is_late = False
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise NoLibraryError(f"{shown} cannot be run ({error.strerror}); {INSTALL}") from None

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # a compiler has children

    def stop() -> None:
        nonlocal is_late
        is_late = True
        kill()

    timer = Timer(timeout_s, stop)
    timer.daemon = True
    timer.start()
    with child:
        try:
            assert child.stdout
            output = child.stdout.read(MAX_OUTPUT_BYTES)
            if len(output) == MAX_OUTPUT_BYTES:
                kill()
            child.wait()
        except BaseException:
            kill()
            raise
        finally:
            timer.cancel()
    if is_late:
        raise NoLibraryError(f"{shown} did not end within {timeout_s:.0f} s; {INSTALL}")
    if child.returncode:
        reason = _first_error(output) or f"it exited with {child.returncode}"
        raise NoLibraryError(f"{shown} failed ({reason}); correct that, or {INSTALL}")
    return output


def _first_error(output: bytes) -> str:
    """Return the first line of an error, without control characters."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    is_error = re.compile("error|failed|cannot|No such", re.IGNORECASE).search
    line = next(filter(is_error, lines), lines[0] if lines else "")
    return "".join(c if c.isprintable() else "?" for c in line[:200])


def _own_folder() -> Path:
    """Return the folder of the libraries, with no symbolic link in its path.

    Raises:
        NoLibraryError: Another user can write to it, or could exchange it for another folder.
        OSError: It cannot be created.
    """
    folder = cache_folder()
    for path in reversed((folder, *folder.parents)):
        # another process may create it at the same time
        path.mkdir(mode=0o700, exist_ok=True)
    folder = folder.resolve()
    user = os.geteuid()
    for path in (folder, *folder.parents):
        status = path.stat()
        owners = {user} if path == folder else {user, 0}
        if status.st_uid not in owners:
            raise NoLibraryError(
                f"{path} belongs to another user ({status.st_uid}), who could put code into it;"
                f" {OWN_FOLDER}"
            )
        # In a folder with the sticky bit, as /tmp, only an owner can exchange what is there. A
        # group with the number of its user is of that user alone, by custom.
        others = stat.S_IWGRP | stat.S_IWOTH
        if path != folder and (status.st_mode & stat.S_ISVTX):
            others = 0
        elif path != folder and status.st_gid == os.getegid() == user:
            others = stat.S_IWOTH
        if status.st_mode & others:
            raise NoLibraryError(
                f"{path} can be written to by other users (mode {status.st_mode & 0o7777:o}), who"
                f" could put code into it; chmod go-w it, or {OWN_FOLDER}"
            )
    return folder


def _is_whole(path: Path) -> bool:
    """Return whether there is a library that this user has written, and that is undamaged."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # there is none, or it is a symbolic link
        return False
    with os.fdopen(file, "rb") as reader:
        status = os.fstat(file)
        if (
            not stat.S_ISREG(status.st_mode)
            or status.st_uid != os.geteuid()
            or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ):
            return False
        content = reader.read()
    code, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    return hashlib.sha256(code).digest() == digest


def _key(files: Sequence[Path], command: Sequence[str], compiler_version: bytes) -> str:
    """Return a hash of everything that decides the compiled code, 16 hex digits."""
    contents = [
        *(path.read_bytes() for path in files),
        compiler_version,
        os.fsencode(" ".join(command)),
        _processor(),
    ]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]


def _compile(command: Sequence[str], sources: Sequence[Path], path: Path) -> None:
    # another process or thread may compile at the same time: each writes its own file, and either
    # result is good
    scratch = path.with_suffix(f".{uuid4().hex}.tmp")
    shown = shlex.join(command[:1])
    try:
        _output_of([*command, *map(str, sources), "-o", str(scratch)], COMPILE_TIMEOUT_S)
        if not scratch.is_file():
            raise NoLibraryError(f"{shown} made no file; {INSTALL}")
        scratch.chmod(0o700)  # the umask may let others write
        attempt = subprocess.run([sys.executable, "-ISc", TRY_TO_LOAD, scratch], check=False)
        if attempt.returncode < 0:
            raise NoLibraryError(f"what {shown} made crashes when it is loaded; {INSTALL}")
        with scratch.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            file.write(digest)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _load(path: Path, signatures: Signatures) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))
        for name, argument_types in signatures.items():
            function = getattr(loaded, name)
            function.argtypes = argument_types
            function.restype = ctypes.c_int64
    except (OSError, AttributeError) as error:
        # another architecture's, a file system mounted with noexec, a function that is missing
        reason = _first_error(str(error).encode(errors="replace"))
        raise NoLibraryError(
            f"the compiled library cannot be loaded ({reason}); {INSTALL} for this machine, or"
            " set XDG_CACHE_HOME to a folder on a disk that is not mounted with noexec"
        ) from None
    return loaded


def _processor() -> bytes:
    """Return what -march=native depends on: different machines may share one home folder."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    ).encode()
