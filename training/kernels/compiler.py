"""Compiles the .cpp files of this folder once per machine and calls their functions.

The kernels need a C++ compiler and a CPU with AVX-512, for whose registers they are written: on a
CPU that has AVX2 at most they take four times as long as oneDNN's layers and PyTorch's operators.
Without either, training and scoring use oneDNN and PyTorch.
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

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("*.cpp"))
HEADERS = sorted(FOLDER.glob("*.h"))
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC"]
# without it compilers avoid 512-bit vectors, which slowed the clock of the first CPUs that had them
FLAGS_OF_MACHINE = {"x86_64": ["-mprefer-vector-width=512"]}

Argument = Tensor | Sequence[Tensor] | Sequence[int] | int | float | None

POINTER, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
IDS = [POINTER, INT, POINTER, INT]  # ids, bytes of an id, offsets, rows of all tables
# argument types of the extern "C" functions; what each argument means is in the .cpp files
SIGNATURES: dict[str, Sequence[type]] = {
    "embedding_lookup": [POINTER, *IDS, POINTER, INT, INT, INT],
    "step_sgd": [POINTER, *IDS, POINTER, FLOAT, INT, INT, INT],
    "step_rowwise_adagrad": [POINTER, POINTER, *IDS, POINTER, FLOAT, FLOAT, INT, INT, INT],
    "pair_dots": [POINTER, POINTER, POINTER, INT, INT, INT],
    "pair_dots_backward": [POINTER, POINTER, POINTER, POINTER, POINTER, INT, INT, INT],
    "relu_backward": [POINTER, POINTER, POINTER, INT, INT],
    "linear_stack_forward": [
        *[INT, INT, POINTER, INT],  # bf16, num_layers, widths, B
        *[POINTER, POINTER, POINTER, INT, POINTER, POINTER],
    ],
    "linear_stack_backward": [
        *[INT, INT, POINTER, INT],  # bf16, num_layers, widths, B
        *[POINTER, INT, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER],
    ],
}


def why_not_compiled() -> str | None:
    """Return the reason why this machine uses no compiled kernels, or None if it uses them."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability != "AVX512":
        return (
            f"this CPU has no AVX-512 (torch uses {capability}): "
            "oneDNN and PyTorch's own operators compute the model"
        )
    if library() is None:
        return (
            "no working C++ compiler (c++, or CXX): "
            "PyTorch's own operators compute the model, which is slower"
        )
    return None


@cache
def library() -> ctypes.CDLL | None:
    """Return the shared library of all kernels, compiled if this machine has not done so before.

    It is kept in the user's cache (XDG_CACHE_HOME) under a hash of sources, compiler, flags and
    processor. No network is needed.

    Returns:
        The library; None without AVX-512, without a compiler, or if the compilation fails. torch
        decides whether the CPU has AVX-512, so ATEN_CPU_CAPABILITY=avx2 switches the kernels off.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        return None
    command = [*compiler, *FLAGS, *FLAGS_OF_MACHINE.get(platform.machine(), [])]
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
        path = _cache_folder() / f"kernels-{_key(command, version)}.so"
        if not path.exists():
            _compile(command, path)
        return _load(path)
    except (OSError, subprocess.CalledProcessError):
        return None


def kernels_name() -> str:
    """Return the name of the library, which contains its hash, or `none` without a library.

    It is part of what decides a run, because kernels add in another order than PyTorch does.
    """
    loaded = library()
    return Path(loaded._name).stem if loaded else "none"


def call(name: str, *arguments: Argument) -> int:
    """Call an extern "C" function of the library.

    Args:
        name: A key of SIGNATURES.
        arguments: A contiguous tensor is passed as a pointer to its data, a sequence of tensors as
            an array of such pointers, a sequence of integers as an array of int64, None as a null
            pointer.

    Returns:
        What the function returned: -1 for success, else the position of an invalid id.

    Raises:
        ctypes.ArgumentError: The arguments do not fit SIGNATURES.
    """
    loaded = library()
    assert loaded is not None
    return int(getattr(loaded, name)(*map(_to_ctypes, arguments)))


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "clickmill"


def _key(command: Sequence[str], compiler_version: bytes) -> str:
    """Return a hash of everything that decides the compiled code, 16 hex digits."""
    contents = [
        *(path.read_bytes() for path in (*SOURCES, *HEADERS)),
        compiler_version,
        " ".join(command).encode(),
        _processor(),
    ]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]


def _compile(command: Sequence[str], path: Path) -> None:
    # the code in this folder is loaded and executed, so only this user may write to it
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # another process may compile at the same time: each writes its own file, and either result is
    # good
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    subprocess.run(
        [*command, *map(str, SOURCES), "-o", str(scratch)], capture_output=True, check=True
    )
    scratch.replace(path)


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name, argument_types in SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes = argument_types
        function.restype = ctypes.c_int64
    return loaded


def _to_ctypes(argument: Argument) -> object:
    match argument:
        case None:
            return ctypes.c_void_p(None)
        case Tensor():
            return ctypes.c_void_p(argument.data_ptr())
        case float():
            return ctypes.c_float(argument)
        case int():
            return ctypes.c_int64(argument)
    addresses = [item.data_ptr() for item in argument if isinstance(item, Tensor)]
    if addresses:
        return (ctypes.c_void_p * len(addresses))(*addresses)
    return (ctypes.c_int64 * len(argument))(*map(int, argument))


def _processor() -> bytes:
    """Return what -march=native depends on: different machines may share one home folder."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    ).encode()
