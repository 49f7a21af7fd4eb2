"""Compiles the .cpp files of this folder once per machine and calls their functions.

They are compiled for the instruction set of this CPU, whose registers decide the width of vectors
and blocks (simd.h). choice.py says which operators use them.
"""

import ctypes
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from common.cpp import load_library

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("*.cpp"))
HEADERS = sorted(FOLDER.glob("*.h"))
FLAGS = ["-fopenmp", "-fno-math-errno"]
InstructionSet = Literal["avx512", "avx2", "neon"]
FLAGS_OF_INSTRUCTION_SET: dict[InstructionSet, list[str]] = {
    # without the second flag compilers avoid 512-bit vectors, which slowed the clock of the first
    # CPUs that had them
    "avx512": ["-march=native", "-mprefer-vector-width=512"],
    "avx2": ["-march=x86-64-v3"],
    "neon": ["-march=armv8-a"],
}

Argument = Tensor | Sequence[Tensor] | Sequence[int] | int | float | None

POINTER, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
IDS = [POINTER, INT, POINTER, INT]  # ids, bytes of an id, offsets, rows of all tables
# argument types of the extern "C" functions; what each argument means is in the .cpp files
SIGNATURES: dict[str, Sequence[type]] = {
    "embedding_lookup": [POINTER, *IDS, POINTER, INT, INT, INT],
    "distinct_rows": [*IDS, POINTER, POINTER, POINTER, INT, INT],
    "step_sgd": [POINTER, *IDS, POINTER, FLOAT, INT, INT, INT],
    "step_rowwise_adagrad": [POINTER, POINTER, *IDS, POINTER, FLOAT, FLOAT, INT, INT, INT],
    "pooled_lookup": [POINTER, POINTER, INT, INT],
    "pooled_step_sgd": [POINTER, POINTER, INT, FLOAT, INT],
    "pooled_step_rowwise_adagrad": [POINTER, POINTER, POINTER, INT, FLOAT, FLOAT, INT],
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


@cache
def instruction_set() -> InstructionSet | None:
    """Return the instruction set that the kernels are compiled for, None if there is none.

    torch decides what an x86 CPU has, so ATEN_CPU_CAPABILITY=avx2 makes a CPU with AVX-512 one with
    AVX2.
    """
    if platform.machine() in ("aarch64", "arm64"):
        return "neon"
    by_capability: dict[str, InstructionSet] = {"AVX512": "avx512", "AVX2": "avx2"}
    return by_capability.get(torch.backends.cpu.get_cpu_capability())


@cache
def library() -> ctypes.CDLL | None:
    """Return the shared library of all kernels, compiled if this machine has not done so before.

    Returns:
        The library; None on other CPUs, without a compiler, or if the compilation fails.
    """
    target = instruction_set()
    if target is None:
        return None
    flags = [*FLAGS, *FLAGS_OF_INSTRUCTION_SET[target]]
    return load_library("kernels", SOURCES, SIGNATURES, headers=HEADERS, flags=flags)


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
