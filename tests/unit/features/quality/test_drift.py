"""The PSI of two histograms against SciPy, its silence on equal distributions, and fixed bins."""

import numpy as np
import polars as pl
import pytest
from scipy.special import rel_entr
from scipy.stats import chi2

from features.quality.drift import (
    ID_BINS,
    MIN_ROWS,
    VALUE_BINS,
    beyond_chance,
    count_in_bins,
    count_parts_in_bins,
    id_bins,
    psi,
)


def expected_psi(rows: np.ndarray, window: np.ndarray) -> float:
    """Compute the PSI from relative entropies and a chi-squared variable.

    It is only right if no bin is sparse.
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (rows, window))
    variable = chi2(len(rows) - 1)
    chance = (variable.mean() + 3 * variable.std()) * (1 / rows.sum() + 1 / window.sum())
    return max(0, rel_entr(p, q).sum() + rel_entr(q, p).sum() - chance)


@pytest.mark.parametrize("shift", [0, 0.02, 0.1, 0.5])
def test_psi_is_the_formula(shift: float) -> None:
    rng = np.random.default_rng(1)
    q = rng.dirichlet(np.full(20, 5.0))
    p = (1 - shift) * q + shift * np.roll(q, 1)
    rows, window = rng.multinomial(5000, p), rng.multinomial(40_000, q)
    assert rows.min() >= MIN_ROWS
    assert psi(rows, window) == pytest.approx(expected_psi(rows, window), abs=1e-12)
    assert psi(window, rows) == pytest.approx(psi(rows, window))
    assert (psi(rows, window) > 0.05) == (shift == 0.5)


@pytest.mark.parametrize(("n", "m"), [(430, 2570), (7000, 42_000), (42_000, 250_000), (50, 50)])
@pytest.mark.parametrize("concentration", [0.05, 1, 100])
def test_samples_of_one_distribution_do_not_drift(n: int, m: int, concentration: float) -> None:
    rng = np.random.default_rng(2)
    indices = []
    for _ in range(200):
        q = rng.dirichlet(np.full(ID_BINS, concentration))
        indices.append(psi(rng.multinomial(n, q), rng.multinomial(m, q)) or 0)
    assert np.mean(np.array(indices) > 0) < 0.03
    assert max(indices) < 0.2  # below the threshold 0.25 of params.yaml


def test_a_bin_that_only_one_side_has_is_not_joined_away() -> None:
    window = np.array([0, 5000, 5000])
    assert psi(np.array([1000, 0, 0]), window) > 5
    assert psi(np.array([200, 400, 400]), window) > 0.25


def test_sparse_bins_join_their_neighbours() -> None:
    rows, window = np.array([2, 900, 3, 600, 0, 4]), np.array([9, 5000, 40, 7000, 3, 20])
    assert psi(rows, window) == psi(np.array([902, 607]), np.array([5009, 7063]))


def test_too_few_rows_have_no_psi() -> None:
    assert psi(np.zeros(3, np.int64), np.array([5, 5, 5])) is None
    assert psi(np.array([5, 5, 5]), np.zeros(3, np.int64)) is None
    assert psi(np.array([4, 3, 2]), np.array([500, 300, 200])) is None
    assert psi(np.array([900]), np.array([5000])) is None


def test_bins_of_numbers_rise_with_the_numbers() -> None:
    values = [-1e9, -300.0, -2.0, -1.0, *map(float, range(17)), 1e3, 1e9, 1e300]
    bins = [int(np.flatnonzero(count_in_bins(pl.Series([value])))[0]) for value in values]
    assert bins == sorted(bins)
    assert len(set(bins)) == len(values)
    assert bins[4] == VALUE_BINS // 2  # zero
    same = pl.Series([32, 33, 34, 35, None, 36])
    assert sorted(count_in_bins(same)[count_in_bins(same) > 0].tolist()) == [1, 4]
    assert count_in_bins(pl.Series([2**62, -(2**62), None])).sum() == 2
    assert (count_in_bins(pl.Series([1, 2, 2])) == count_in_bins(pl.Series([2.0, 1.0, 2.0]))).all()


def test_several_sets_are_counted_as_each_of_them_alone() -> None:
    values = pl.Series([-3.0, None, 0.0, 1e300, None, 7.5, 7.5, -0.0])
    parts = np.array([2, 2, 0, 0, 0, 2, 2, 3])
    counts = count_parts_in_bins(values, parts, num_parts=4)
    assert counts.shape == (4, VALUE_BINS)
    for part in range(4):
        assert (counts[part] == count_in_bins(values.filter(pl.Series(parts == part)))).all()


def test_the_bins_of_ids_do_not_change() -> None:
    """Days that an earlier version counted are compared with days that are counted now."""
    assert id_bins(10).tolist() == [0, 79, 30, 109, 60, 11, 90, 41, 120, 71]
    bins = id_bins(1_000_000)
    assert bins.max() == ID_BINS - 1
    assert np.bincount(bins).std() < 5  # evenly
    assert len(set(id_bins(64).tolist())) == 64
    assert (bins[:1000] == id_bins(1000)).all()


def test_chance_is_subtracted_from_a_difference_of_shares() -> None:
    assert beyond_chance(0.3, 100, 0.25, 1000) == 0
    error = np.sqrt(0.25 * 0.75 * (1 / 1000 + 1 / 1000))
    assert beyond_chance(0.35, 1000, 0.15, 1000) == pytest.approx(0.2 - 3 * error)
    assert beyond_chance(0.15, 1000, 0.35, 1000) == -beyond_chance(0.35, 1000, 0.15, 1000)
    assert beyond_chance(0, 10, 0, 10) == 0
