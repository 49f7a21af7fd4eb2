"""The data profiles of days that are counted together are those of each day alone."""

import numpy as np
import polars as pl
import pytest

from features.encode.feature_state import FeatureState, Layout
from features.encode.split import SPLITS
from features.quality.data_profile import DayProfile
from features.quality.small_days import profiles_of_days
from tests.factories.profiled_rows import draw_rows, fit_state

SIZES = [40, 0, 1, 200, 7]


@pytest.mark.parametrize("ids", ["frequency", "appearance", "padded"])
def test_days_together_have_the_profile_of_each_day(ids: Layout) -> None:
    state = fit_state(draw_rows(400, 1), ids)
    rows = pl.concat([draw_rows(size, seed) for seed, size in enumerate(SIZES)])
    codes = np.random.default_rng(2).integers(0, len(SPLITS), rows.height).astype(np.uint8)
    codes[: SIZES[0]] = 1  # a day of one split
    day_of_row = np.repeat(np.arange(len(SIZES)), SIZES)
    found = profiles_of_days(state, rows, state.encode(rows), day_of_row, codes, len(SIZES))
    assert found == [alone(state, rows, codes, day_of_row == k) for k in range(len(SIZES))]


def alone(
    state: FeatureState, rows: pl.DataFrame, codes: np.ndarray, of_day: np.ndarray
) -> dict[str, object]:
    """Return the profile of one day, which DayProfile counts."""
    profile = DayProfile(state)
    for code, split in enumerate(SPLITS):
        chosen = rows.filter(pl.Series(of_day & (codes == code)))
        if chosen.height:
            profile.add(split, chosen, state.encode(chosen))
    return profile.summary()
