"""The measure of drift between two sets of rows: histograms of a feature, and their PSI.

The bins are fixed formulas that are not fitted to data, so the counts of any two days can be added
and compared. The bin of a number is its sign, its power of two and the next three bits: 0 and the
integers up to 16 each have a bin of their own, and larger numbers share one with numbers that are
up to an eighth larger. The bin of an id is a hash of the id. Blocks of neighbouring ids would not
do: they contain the values that one day brought, so every day would seem to drift.
"""

import math
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.null_values import present_values

ID_BINS = 128
VALUE_BINS = 4096  # 12 bits: the sign, the 8 bits of the exponent, and 3 bits of the mantissa
VALUE_SHIFT = np.uint32(32 - 12)
# 2^32 / golden ratio spreads neighbouring ids evenly (Knuth, The Art of Computer Programming,
# vol. 3, section 6.4).
GOLDEN_RATIO = np.uint32(2654435769)
MIN_ROWS = 10  # rows that are expected in each bin of the smaller set, at least
# Among hundreds of figures, the largest is about this number of standard errors off by chance.
STANDARD_ERRORS = 3

BinCounts = NDArray[np.int64]


def id_bins(cardinality: int) -> NDArray[np.uint8]:
    """Return the bin of each id, 0 to ID_BINS - 1, (cardinality,)."""
    hashes = np.arange(cardinality, dtype=np.uint32) * GOLDEN_RATIO
    return (hashes >> np.uint32(32 - (ID_BINS - 1).bit_length())).astype(np.uint8)


def count_in_bins(values: pl.Series) -> BinCounts:
    """Count numbers by bin, in rising order (VALUE_BINS,). Nulls are not counted."""
    return _in_rising_order(np.bincount(_codes(present_values(values)), minlength=VALUE_BINS))


def count_parts_in_bins(
    values: pl.Series, part_of_row: NDArray[np.int64], num_parts: int
) -> BinCounts:
    """Count the numbers of several sets of rows by bin, as `count_in_bins` counts one set.

    Args:
        values: The numbers (B,).
        part_of_row: The set of each number (B,), 0 to num_parts - 1.
        num_parts: P, the number of sets.

    Returns:
        The counts (P, VALUE_BINS).
    """
    if values.has_nulls():
        part_of_row = part_of_row[values.is_not_null().to_numpy()]
    codes = _codes(present_values(values))
    counts = np.bincount(part_of_row * VALUE_BINS + codes, minlength=num_parts * VALUE_BINS)
    return _in_rising_order(counts.reshape(num_parts, VALUE_BINS))


def _codes(values: NDArray[Any]) -> NDArray[np.int32]:
    """Return the first bits of each number as a float32: the bins, negative numbers last."""
    with np.errstate(over="ignore"):  # a number beyond float32 is infinity, which has a bin
        bits = values.astype(np.float32).view(np.uint32)
    return (bits >> VALUE_SHIFT).view(np.int32)


def _in_rising_order(counts: BinCounts) -> BinCounts:
    positive, negative = np.split(counts, 2, axis=-1)
    return np.concatenate([negative[..., ::-1], positive], axis=-1)


def psi(rows: BinCounts, window: BinCounts) -> float | None:
    """Return the population stability index (PSI) of two histograms, less what chance explains.

    PSI = sum over bins of (p - q) ln(p / q), where p and q are the two shares of a bin, with 1/2
    added to each count. For two samples of one distribution, of n and m rows, the PSI is
    distributed as (1/n + 1/m) times a chi-squared variable with bins - 1 degrees of freedom
    (Yurdakul 2018, "Statistical properties of population stability index"). The mean of this
    distribution plus three standard deviations is subtracted, and a negative result becomes 0.
    Sparse bins are joined with their neighbours first, as for a chi-squared test. By convention
    (Siddiqi 2006, "Credit risk scorecards") less than 0.1 is no shift, 0.1 to 0.25 is a small
    shift, and more is a large one.

    Args:
        rows: Rows of each bin in one set.
        window: Rows of each bin in the other set.

    Returns:
        The index, at least 0; None if there are too few rows to compare.
    """
    n, m = int(rows.sum()), int(window.sum())
    if min(n, m) < 2 * MIN_ROWS:  # there would be one bin
        return None
    joined = joined_bins(np.stack([rows, window]), MIN_ROWS * (n + m) / min(n, m))
    bins = joined.shape[1]
    if bins < 2:
        return None
    p, q = (joined + 0.5) / (joined.sum(axis=1, keepdims=True) + 0.5 * bins)
    chance: float = (1 / n + 1 / m) * (bins - 1 + STANDARD_ERRORS * math.sqrt(2 * (bins - 1)))
    return max(0.0, float(np.sum((p - q) * np.log(p / q))) - chance)


def joined_bins(counts_2B: BinCounts, min_rows: float) -> BinCounts:
    """Join neighbouring bins until each has at least min_rows rows of both sets together."""
    filled = counts_2B[:, counts_2B.any(axis=0)]
    rows_up_to = np.cumsum(filled.sum(axis=0))
    min_rows = math.ceil(min_rows)  # a sum of integers and a float would be rounded
    starts, before = [0], 0
    while (end := int(rows_up_to.searchsorted(before + min_rows)) + 1) < len(rows_up_to):
        starts.append(end)
        before = int(rows_up_to[end - 1])
    if rows_up_to[-1] - before < min_rows and len(starts) > 1:
        starts.pop()  # too few rows are left for a bin of their own
    return np.add.reduceat(filled, starts, axis=1)


def beyond_chance(share: float, num_rows: int, other: float, num_other: int) -> float:
    """Return the difference of two shares of rows, less what chance explains.

    Chance explains a difference of up to three standard errors.

    Args:
        share: The share in the first set.
        num_rows: The number of rows of the first set.
        other: The share in the second set.
        num_other: The number of rows of the second set.

    Returns:
        share - other, moved towards 0; negative if the first share is the lower one.
    """
    pooled = (share * num_rows + other * num_other) / (num_rows + num_other)
    chance = STANDARD_ERRORS * math.sqrt(pooled * (1 - pooled) * (1 / num_rows + 1 / num_other))
    return math.copysign(max(0.0, abs(share - other) - chance), share - other)
