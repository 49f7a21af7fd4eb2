"""Compiles the .cpp files here once per machine, with the C++ compiler that is there; without one, PyTorch's own operators do its work."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC"]
WIDE = {"x86_64": ["-mprefer-vector-width=512"]}  # compilers avoid AVX-512 for what it cost on its first machines


@cache
def library() -> ctypes.CDLL | None:
    """They as one shared library; None where there is no compiler or it fails, and with CLICKMILL_KERNELS=off.

    It is kept in the user's cache (XDG_CACHE_HOME) by a hash of source, compiler, flags and processor. No network is needed.
    """
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if os.environ.get("CLICKMILL_KERNELS") == "off" or shutil.which(compiler[0]) is None:
        return None
    command = [*compiler, *FLAGS, *WIDE.get(platform.machine(), [])]
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
        decides = [*(path.read_bytes() for path in SOURCES), version, " ".join(command).encode(), _processor()]
        key = hashlib.sha256(b"\0".join(decides)).hexdigest()[:16]
        path = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "clickmill" / f"kernels-{key}.so"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(f".{os.getpid()}.tmp")
            subprocess.run([*command, *map(str, SOURCES), "-o", str(scratch)], capture_output=True, check=True)
            scratch.replace(path)  # another process may be compiling it too; either's will do
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> bytes:
    """What -march=native looks at: a home folder may be shared by different machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})).encode()
