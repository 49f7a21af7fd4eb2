"""The functions of compiled.cpp, which are compiled once per machine.

Without a C++ compiler, `fields` and `digits` do the same with NumPy, which takes longer.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cpp import Signatures, load_library

SOURCE = Path(__file__).with_name("compiled.cpp")
POINTER, INT = ctypes.c_void_p, ctypes.c_int64
OF_A_PARSER = [POINTER, POINTER, POINTER, INT, INT, INT, POINTER, POINTER]
SIGNATURES: Signatures = {
    "find_delimiters": [POINTER, INT, INT, INT, POINTER, INT],
    "parse_labels": OF_A_PARSER,
    "parse_hex32": OF_A_PARSER,
    "parse_integers": OF_A_PARSER,
}


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled functions; None without a compiler."""
    return load_library("text", [SOURCE], SIGNATURES)


def find_delimiters(
    data: NDArray[np.uint8], start: int, separator: int, delimiters: NDArray[np.int64]
) -> bool:
    """Find the separators and line ends from a position on.

    Args:
        data: The text.
        start: The position.
        separator: The byte between two fields.
        delimiters: Receives their positions.

    Returns:
        Whether there are exactly as many as `delimiters` has places.
    """
    loaded = library()
    assert loaded is not None
    found = loaded.find_delimiters(
        data.ctypes.data, start, len(data), separator, delimiters.ctypes.data, len(delimiters)
    )
    return bool(found == len(delimiters))


def parse(
    name: str,
    data: NDArray[np.uint8],
    before: NDArray[np.int64],
    ends: NDArray[np.int64],
    values: NDArray[Any],
    is_present: NDArray[np.bool_],
) -> bool:
    """Read the numbers of some fields.

    Args:
        name: A parser of SIGNATURES.
        data: The text.
        before: The position of the byte before each field (R, C); a row is contiguous.
        ends: The position of the byte after each field (R, C), with the same strides.
        values: Receives the numbers (C, R).
        is_present: Receives whether a field is not empty (C, R).

    Returns:
        False if a field cannot be read; the contents of the results are undefined then.
    """
    loaded = library()
    assert loaded is not None
    assert before.strides == ends.strides
    assert before.strides[1] == before.itemsize
    num_rows, num_columns = before.shape
    stride = before.strides[0] // before.itemsize
    pointers = [array.ctypes.data for array in (data, before, ends)]
    results = [array.ctypes.data for array in (values, is_present)]
    return bool(getattr(loaded, name)(*pointers, num_rows, stride, num_columns, *results))
