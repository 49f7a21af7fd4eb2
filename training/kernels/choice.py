"""The rule by which a machine picks the implementation of each operator on a CPU.

    operators                            avx512              avx2               other CPUs
    lookup, dot products, table updates  compiled            compiled           pytorch
    linear layers, fp32                  compiled            compiled           onednn
    linear layers, bf16, <= 1,024 rows   compiled            (refused)          (refused)
    linear layers, bf16, more rows       onednn              (refused)          (refused)

`compiled` are the kernels of this folder. Without a C++ compiler `pytorch` and `onednn` take their
place, as on ARM, where the kernels work but their speed is not known. bf16 is refused on a CPU
without bfloat16 instructions.

The rule depends on the CPU's features, the compiler and the shapes, never on a timing, so the same
machine gives the same bytes. `benchmarks/paths.py` measures the implementations beside each other,
and fails if the rule picks one that is over 10 % slower than another.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch

from training.kernels.advice import CPU, OPERATORS
from training.kernels.compiler import InstructionSet, instruction_set, library

Precision = Literal["fp32", "bf16"]
Operators = Literal["compiled", "pytorch"]
Layers = Literal["compiled", "onednn", "pytorch"]

# The instruction sets for which the compiled operators other than layers are the fastest.
COMPILED_OPERATORS: set[InstructionSet] = {"avx512", "avx2"}
# The number of rows up to which the compiled linear layers are the fastest; 0 where not listed.
MAX_COMPILED_ROWS: dict[tuple[InstructionSet, Precision], float] = {
    ("avx512", "fp32"): math.inf,
    ("avx2", "fp32"): math.inf,
    ("avx512", "bf16"): 1024,
}


class Implementations(NamedTuple):
    """The implementations of all operators.

    Attributes:
        operators: Of embedding lookup, dot products, table updates, and gradients of bf16 ReLUs.
        layers: Of the linear layers.
    """

    operators: Operators
    layers: Layers


_forced: Implementations | None = None


def operators() -> Operators:
    """Return the implementation of all operators but the linear layers."""
    if _forced:
        return _forced.operators
    return "compiled" if instruction_set() in COMPILED_OPERATORS and library() else "pytorch"


def layers(num_rows: int, precision: Precision) -> Layers:
    """Return the implementation of the linear layers.

    Args:
        num_rows: The rows of a batch.
        precision: Of the matrix products.
    """
    if _forced:
        return _forced.layers
    target = instruction_set()
    if target and num_rows <= MAX_COMPILED_ROWS.get((target, precision), 0) and library():
        return "compiled"
    return "onednn" if torch.backends.mkldnn.is_available() else "pytorch"  # type: ignore[no-untyped-call]


def bf16_supported() -> bool:
    """Return whether this CPU has bfloat16 instructions; without them bf16 is slower than fp32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def describe(num_rows: int, precision: Precision) -> dict[str, str]:
    """Return the CPU's instruction set and the implementation of each operator, by name.

    Args:
        num_rows: The rows of a batch.
        precision: Of the linear layers.
    """
    return {
        CPU: instruction_set() or torch.backends.cpu.get_cpu_capability(),
        OPERATORS: operators(),
        f"{precision} linear layers": layers(num_rows, precision),
    }


@contextmanager
def forced(implementations: Implementations) -> Iterator[None]:
    """Use the given implementations instead of those of the rule.

    Benchmarks and tests choose them, and an exported model has to consist of PyTorch's operators.
    """
    global _forced
    before, _forced = _forced, implementations
    try:
        yield
    finally:
        _forced = before
