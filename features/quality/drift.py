"""How far two sets of rows differ in one feature: counts in bins that are fixed for ever, and the PSI of two such histograms.

Bins are closed formulas, not fitted to anything, so the counts of any two days can be added and compared. A number's bin is its sign,
its power of two and the next three bits: 0 and the integers to 16 have one each, larger ones share it with up to an eighth more. An
id's bin is a hash of the id, whatever its popularity: blocks of neighbouring ids would hold the values that one day brought, and every
day would look new.
"""

import math

import numpy as np
import polars as pl
from numpy.typing import NDArray

ID_BINS = 128
VALUE_BINS = 4096  # a float32's sign, exponent and three bits of its mantissa
VALUE_SHIFT = np.uint32(32 - 12)
GOLDEN_RATIO = np.uint32(
    2654435769
)  # 2^32 / 1.618…: neighbouring ids are spread evenly (Knuth, section 6.4)
MIN_ROWS = 10  # to be expected in a bin, in the smaller set
STANDARD_ERRORS = 3  # of hundreds of figures, the largest is about so far off by chance

Counts = NDArray[np.int64]


def id_bins(cardinality: int) -> NDArray[np.uint8]:
    """The bin of each id, 0 .. ID_BINS-1."""
    hashes = np.arange(cardinality, dtype=np.uint32) * GOLDEN_RATIO
    return (hashes >> np.uint32(32 - (ID_BINS - 1).bit_length())).astype(np.uint8)


def count_values(values: pl.Series) -> Counts:
    """Of numbers: how many stand in each of the VALUE_BINS bins, in rising order. Nulls are not counted."""
    with np.errstate(over="ignore"):  # beyond float32 is infinity, a bin like any other
        bits = values.drop_nulls().to_numpy().astype(np.float32).view(np.uint32)
    counts = np.bincount((bits >> VALUE_SHIFT).view(np.int32), minlength=VALUE_BINS)
    positive, negative = np.split(counts, 2)
    return np.concatenate([negative[::-1], positive])


def psi(rows: Counts, window: Counts) -> float | None:
    """Population stability index of two histograms over the same bins, less what chance explains; None where they are too few to tell.

    PSI = sum over bins of (p - q) ln(p / q), where p and q are the two shares of a bin, each count plus a half. Two samples of one
    distribution have a PSI that is (1/n + 1/m) times a chi-squared variable with bins - 1 degrees of freedom (Yurdakul 2018,
    "Statistical properties of population stability index"): its mean and three standard deviations are taken off, and what is left is
    at least 0. Sparse bins are first joined with their neighbours, as for a chi-squared test. By custom (Siddiqi 2006, "Credit risk
    scorecards") less than 0.1 is no shift, 0.1 to 0.25 a small one, more a large one.
    """
    n, m = int(rows.sum()), int(window.sum())
    if not n or not m:
        return None
    joined = _joined(np.stack([rows, window]), MIN_ROWS * (n + m) / min(n, m))
    bins = joined.shape[1]
    if bins < 2:
        return None
    p, q = (joined + 0.5) / (joined.sum(axis=1, keepdims=True) + 0.5 * bins)
    chance: float = (1 / n + 1 / m) * (bins - 1 + STANDARD_ERRORS * math.sqrt(2 * (bins - 1)))
    return max(0.0, float(np.sum((p - q) * np.log(p / q))) - chance)


def _joined(counts_2B: Counts, min_rows: float) -> Counts:
    """Neighbouring bins added up until each holds min_rows rows of both sets together."""
    filled = counts_2B[:, counts_2B.any(axis=0)]
    starts, held = [0], 0
    for i, rows in enumerate(filled.sum(axis=0).tolist()):
        if held >= min_rows:
            starts.append(i)
            held = 0
        held += rows
    if held < min_rows and len(starts) > 1:
        starts.pop()
    return np.add.reduceat(filled, starts, axis=1)


def beyond_chance(share: float, num_rows: int, other: float, num_other: int) -> float:
    """How far one share of rows is above another, negative for below, less what chance explains (three standard errors)."""
    pooled = (share * num_rows + other * num_other) / (num_rows + num_other)
    chance = STANDARD_ERRORS * math.sqrt(pooled * (1 - pooled) * (1 / num_rows + 1 / num_other))
    return math.copysign(max(0.0, abs(share - other) - chance), share - other)
