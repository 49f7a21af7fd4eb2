"""The counts of a day do not depend on the order of its rows or on their split into batches."""

from typing import Any

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from features.quality.data_profile import DayProfile, Tally
from features.quality.drift import joined_bins, psi
from tests.factories.profiled_rows import draw_rows, fit_state

SPLITS = ("train", "valid", "test")
ROWS = draw_rows(400, 1)
STATE = fit_state(draw_rows(400, 2))
CODES = pl.Series(np.random.default_rng(3).integers(0, len(SPLITS), 400))


def summary(rows: pl.DataFrame, codes: pl.Series, cuts: list[int]) -> dict[str, Any]:
    profile = DayProfile(STATE)
    for start, end in zip([0, *cuts], [*cuts, rows.height], strict=True):
        batch, codes_of_batch = rows[start:end], codes[start:end]
        for code, split in enumerate(SPLITS):
            chosen = batch.filter(codes_of_batch == code)
            profile.add(split, chosen, STATE.encode(chosen))
    return profile.summary()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 400), max_size=8))
def test_order_and_batches_do_not_matter(seed: int, cuts: list[int]) -> None:
    order = np.random.default_rng(seed).permutation(400)
    assert summary(ROWS[order], CODES[order], sorted(cuts)) == summary(ROWS, CODES, [])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_tallies_can_be_added_and_subtracted(first: int, second: int) -> None:
    low, high = sorted((first, second))
    parts = [
        summary(ROWS[start:end], CODES[start:end], [])
        for start, end in ((0, low), (low, high), (high, 400))
    ]
    tallies = [Tally.from_json(part["splits"]["train"]) for part in parts]
    whole = summary(ROWS, CODES, [])["splits"]["train"]
    assert tallies[2].plus(tallies[0]).plus(tallies[1]).to_json() == whole
    assert (
        Tally.from_json(whole).minus(tallies[1]).to_json() == tallies[0].plus(tallies[2]).to_json()
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=50))
def test_drift_is_symmetric_and_never_below_zero(counts: list[tuple[int, int]]) -> None:
    rows, window = np.array(counts, np.int64).T
    found = psi(rows, window)
    assert found is None or (found >= 0 and np.isfinite(found))
    assert found == psi(window, rows) or abs(found - psi(window, rows)) < 1e-9
    assert psi(rows, rows) in (None, 0.0)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=40),
    st.floats(0.5, 100) | st.sampled_from([30.000000000000004, 39.99999999999999]),
)
def test_bins_are_joined_from_left_to_right(counts: list[tuple[int, int]], min_rows: float) -> None:
    filled = [np.array(one) for one in counts if any(one)]
    if not filled:
        return
    bins = [filled[0]]
    for one in filled[1:]:
        if bins[-1].sum() >= min_rows:
            bins.append(one)
        else:
            bins[-1] = bins[-1] + one
    if bins[-1].sum() < min_rows and len(bins) > 1:
        bins[-2:] = [bins[-2] + bins[-1]]
    found = joined_bins(np.array(counts, np.int64).T, min_rows)
    assert found.tolist() == np.array(bins).T.tolist()
