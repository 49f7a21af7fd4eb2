"""Compile the .cpp files of this folder once per machine, where that makes training faster.

The kernels need a C++ compiler and a CPU with AVX-512, whose registers they are written for: on a CPU with AVX2 alone they take four
times as long as oneDNN's layers and PyTorch's operators. Without either, training and scoring use oneDNN and PyTorch.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
SOURCES, HEADERS = sorted(HERE.glob("*.cpp")), sorted(HERE.glob("*.h"))
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC"]
WIDE = {
    "x86_64": ["-mprefer-vector-width=512"]
}  # compilers avoid AVX-512 for what it cost on its first machines

Argument = Tensor | Sequence[Tensor] | Sequence[int] | int | float | None


def why_not_compiled() -> str | None:
    """The reason why this machine uses no compiled kernels, for the log; None where it uses them."""
    if (capability := torch.backends.cpu.get_cpu_capability()) != "AVX512":
        return f"this CPU has no AVX-512 (torch uses {capability}): oneDNN and PyTorch's own operators compute the model"
    if library() is None:
        return "no working C++ compiler (c++, or CXX): PyTorch's own operators compute the model, which is slower"
    return None


@cache
def library() -> ctypes.CDLL | None:
    """The kernels as one shared library; None without AVX-512, without a compiler, or where compilation fails.

    torch decides whether the CPU has AVX-512, so ATEN_CPU_CAPABILITY=avx2 switches the kernels off as well. The library is kept in the
    user's cache (XDG_CACHE_HOME) by a hash of source, compiler, flags and processor. No network is needed.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        return None
    command = [*compiler, *FLAGS, *WIDE.get(platform.machine(), [])]
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
        decides = [
            *(path.read_bytes() for path in (*SOURCES, *HEADERS)),
            version,
            " ".join(command).encode(),
            _processor(),
        ]
        key = hashlib.sha256(b"\0".join(decides)).hexdigest()[:16]
        path = (
            Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
            / "clickmill"
            / f"kernels-{key}.so"
        )
        if not path.exists():
            path.parent.mkdir(
                mode=0o700, parents=True, exist_ok=True
            )  # what is loaded from there is run: nobody else's business
            scratch = path.with_suffix(f".{os.getpid()}.tmp")
            subprocess.run(
                [*command, *map(str, SOURCES), "-o", str(scratch)], capture_output=True, check=True
            )
            scratch.replace(path)  # another process may be compiling it too; either's will do
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError):
        return None


def kernels_name() -> str:
    """Of the library, its hash included; "none" without one. Compiled operators add up in another order than PyTorch's."""
    loaded = library()
    return Path(loaded._name).stem if loaded else "none"


def call(name: str, *arguments: Argument) -> int:
    """A function of the library, and what it returns, an int64.

    Tensors go as pointers to what they hold, contiguous; sequences as arrays of pointers or of int64; None as null.
    """
    loaded = library()
    assert loaded is not None
    function = getattr(loaded, name)
    function.restype = ctypes.c_int64
    return int(function(*map(_converted, arguments)))


def _converted(argument: Argument) -> object:
    match argument:
        case None:
            return ctypes.c_void_p(None)
        case Tensor():
            return ctypes.c_void_p(argument.data_ptr())
        case float():
            return ctypes.c_float(argument)
        case int():
            return ctypes.c_int64(argument)
    addresses = [each.data_ptr() for each in argument if isinstance(each, Tensor)]
    if addresses:
        return (ctypes.c_void_p * len(addresses))(*addresses)
    return (ctypes.c_int64 * len(argument))(*map(int, argument))


def _processor() -> bytes:
    """What -march=native looks at: a home folder may be shared by different machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    ).encode()
