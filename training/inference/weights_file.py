"""The file of weights of a bundle: its tensors are looked at before a model takes memory."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from common.bundle_layout import MANIFEST
from common.config.loading import one_line
from common.files import DataError

FLOAT32 = "F32"  # as safetensors calls it
FEW_WEIGHTS = 1 << 20  # a model of so many weights needs no check of its size
RESTORE = "restore the bundle from where it was made"


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
        shape: Its shape.
        dtype: Its dtype, as safetensors calls it.
    """

    shape: tuple[int, ...]
    dtype: str


def read_stored(path: Path) -> dict[str, Stored]:
    """Return the shape and the dtype of each tensor in a file. The tensors are not read.

    Raises:
        DataError: The file is damaged.
    """
    stored = {}
    try:
        # The default is to map the file, which Linux refuses if it is larger than the memory.
        with safe_open(path, framework="pt", backend="pread") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                stored[name] = Stored(tuple(tensor.get_shape()), tensor.get_dtype())
    except SafetensorError as error:
        raise DataError(
            f"{path}: not a safetensors file ({one_line(str(error))}); train again"
        ) from None
    return stored


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a file of float32 weights. The tensors are not read.

    Raises:
        DataError: The file is damaged, or has numbers that are not float32.
    """
    stored = read_stored(path)
    for name, (_, dtype) in stored.items():
        if dtype != FLOAT32:
            raise DataError(
                f"{path}: tensor {one_line(name)}: {dtype} found, {FLOAT32} expected; train again"
            )
    return {name: shape for name, (shape, _) in stored.items()}


def check_shapes(
    path: Path, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that a file of weights has the tensors of a model.

    Args:
        path: The file.
        shapes: The shape of each tensor in it.
        expected: The shape of each tensor of the model.

    Raises:
        DataError: It has others.
    """
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            raise DataError(
                f"{path}: tensor {one_line(name)}: {_shown(shapes.get(name))} found,"
                f" {_shown(expected.get(name))} expected from the feature state and the"
                " parameters; train again"
            )


def check_finite(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Check a tensor of a file of weights.

    Raises:
        DataError: A value is NaN or infinite.
    """
    if not all_finite(tensor):
        position = tuple((~tensor.isfinite()).nonzero()[0].tolist())
        raise DataError(
            f"{path}: tensor {name}: value {tensor[position].item()} at {list(position)} is no"
            f" finite number; {RESTORE}, or train again"
        )


def all_finite(tensor: torch.Tensor) -> bool:
    """Return whether no value is NaN or infinite, in one pass without further memory."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def check_size(shapes: Mapping[str, tuple[int, ...]], num_expected: int, path: Path) -> None:
    """Check that a model is not much larger than its weights, before it takes memory.

    Args:
        shapes: The shape of each tensor in the file of weights.
        num_expected: The number of weights that the model is to have.
        path: The file.

    Raises:
        DataError: It is.
    """
    num_found = sum(math.prod(shape) for shape in shapes.values())
    if num_expected > 2 * num_found + FEW_WEIGHTS:
        raise DataError(
            f"{path.with_name(MANIFEST)}: params.model makes a model of {num_expected:,} weights,"
            f" but {path.name} has {num_found:,}; {RESTORE}"
        )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
