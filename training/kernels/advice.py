"""What this machine would need to train faster, from the implementations that a model recorded.

It imports no torch, so that the commands which only show results start quickly.
"""

from collections.abc import Mapping

CPU, OPERATORS = "CPU", "embedding operators"  # keys of choice.describe


def what_would_be_faster(implementations: Mapping[str, str]) -> str | None:
    """Return what a faster implementation needs, as a sentence; None if there is no faster one.

    Args:
        implementations: What `choice.describe` returned, or nothing for a run on a GPU.
    """
    if implementations.get(OPERATORS, "compiled") != "compiled":
        return (
            "PyTorch's own operators computed the model, because there is no working C++ compiler."
            " To train faster, install g++, or set CXX to a C++ compiler."
        )
    if implementations.get(CPU, "avx512") != "avx512":
        return f"This CPU has {implementations[CPU].upper()}; a CPU with AVX-512 trains faster."
    return None
