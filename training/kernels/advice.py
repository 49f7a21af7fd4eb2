"""Sentences about the implementations that trained a model, and about what would be faster.

It imports no torch, so that the commands which only show results start quickly.
"""

from collections.abc import Mapping

CPU, OPERATORS = "CPU", "embedding operators"  # keys of choice.describe


def as_text(implementations: Mapping[str, str]) -> str:
    """Format the result of `choice.describe` as one line."""
    return ", ".join(f"{name}: {which}" for name, which in implementations.items())


def what_would_be_faster(implementations: Mapping[str, str]) -> str | None:
    """Return what training on this machine needs to be faster; None if nothing is known.

    Args:
        implementations: The result of `choice.describe`; empty for a run on a GPU.
    """
    cpu = implementations.get(CPU, "avx512")
    if cpu not in ("avx512", "avx2"):
        return f"This CPU has {cpu.upper()}; a CPU with AVX2 or AVX-512 uses compiled kernels."
    if implementations.get(OPERATORS, "compiled") != "compiled":
        return (
            "PyTorch's own operators computed the model, because there were no compiled kernels. To"
            " train faster, install g++, or set CXX to a C++ compiler; `clickmill doctor` says what"
            " is wrong."
        )
    if cpu == "avx2":
        return "This CPU has AVX2; a CPU with AVX-512 trains faster."
    return None
