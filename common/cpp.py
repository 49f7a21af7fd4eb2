"""Compiles C++ files to a shared library, once per machine, and loads it with ctypes.

The library is kept in the user's cache (XDG_CACHE_HOME) under a hash of everything that decides it.
No network is needed. CXX names the compiler; CXXFLAGS is not read, because the compilers of Conda
set it to the flags of an old CPU.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

FLAGS = ["-std=c++17", "-O3", "-shared", "-fPIC"]

Signatures = Mapping[str, Sequence[type]]
"""The argument types of the extern "C" functions of a library, which all return an int64."""


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
        The library; None without a compiler, or if the compilation fails.
    """
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        return None
    command = [*compiler, *FLAGS, *flags]
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
        key = _key([*sources, *headers], command, version)
        path = _cache_folder() / f"{name}-{key}.so"
        if not path.exists():
            _compile(command, sources, path)
        return _load(path, signatures)
    except (OSError, subprocess.CalledProcessError):
        return None


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "clickmill"


def _key(files: Sequence[Path], command: Sequence[str], compiler_version: bytes) -> str:
    """Return a hash of everything that decides the compiled code, 16 hex digits."""
    contents = [
        *(path.read_bytes() for path in files),
        compiler_version,
        " ".join(command).encode(),
        _processor(),
    ]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]


def _compile(command: Sequence[str], sources: Sequence[Path], path: Path) -> None:
    # the code in this folder is loaded and executed, so only this user may write to it
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # another process or thread may compile at the same time: each writes its own file, and either
    # result is good
    scratch = path.with_suffix(f".{uuid4().hex}.tmp")
    subprocess.run(
        [*command, *map(str, sources), "-o", str(scratch)], capture_output=True, check=True
    )
    scratch.replace(path)


def _load(path: Path, signatures: Signatures) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name, argument_types in signatures.items():
        function = getattr(loaded, name)
        function.argtypes = argument_types
        function.restype = ctypes.c_int64
    return loaded


def _processor() -> bytes:
    """Return what -march=native depends on: different machines may share one home folder."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    ).encode()
