"""The encoded rows of a request, and the error of a request that is wrong as a whole."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class RequestError(ValueError):
    """A request that is wrong as a whole; the text says what to correct."""


class BadRow(NamedTuple):
    """A row that cannot be encoded.

    Attributes:
        row: Its number in the request, from 0.
        reason: Why, in the words of `clickmill predict`.
    """

    row: int
    reason: str


@dataclass(frozen=True)
class EncodedRows:
    """The model inputs of the good rows of a request, and the reasons of the others.

    Attributes:
        dense_GN: The dense features of the G good rows, float32.
        ids_GF: Their ids, int32.
        row_numbers_G: Their numbers in the request, from 0, rising, int64.
        bad_rows: The other rows, in the order of the request.
        num_rows: The number of all rows of the request.
    """

    dense_GN: NDArray[np.float32]
    ids_GF: NDArray[np.int32]
    row_numbers_G: NDArray[np.int64]
    bad_rows: list[BadRow]
    num_rows: int
