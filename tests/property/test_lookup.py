"""Values to ids as a dictionary would, for every kind of column."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encode.id_map import ROOMY, IdMap

KINDS = {
    pl.UInt32: st.integers(0, 2**32 - 1),
    pl.Int8: st.integers(-128, 127),
    pl.Int64: st.integers(-(2**63), 2**63 - 1)
    | st.integers(-5, 5)
    | st.integers(2**40, 2**40 + 2**32),
    pl.String: st.text(max_size=2),
}


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(list(KINDS)))
def test_as_a_dictionary(data, dtype):
    value = KINDS[dtype]
    known = data.draw(st.lists(value, unique=True, max_size=40))
    asked = data.draw(st.lists(st.none() | value | st.sampled_from(known or [None]), max_size=40))
    found = IdMap(pl.Series(known, dtype=dtype), first=7, missing=1, other=0).ids(
        pl.Series("asked", asked, dtype=dtype)
    )
    place = {one: 7 + k for k, one in enumerate(known)}
    assert found.dtype == pl.Int32
    assert found.to_list() == [1 if one is None else place.get(one, 0) for one in asked]


@pytest.mark.parametrize("num_values", [1, 1000, ROOMY, ROOMY + 1, 1_000_000])
def test_of_any_size(num_values):
    random = np.random.default_rng(num_values)
    values = np.unique(random.integers(0, 2**32, num_values + 1000, dtype=np.uint32))
    random.shuffle(values)
    known, unknown = values[:num_values], values[num_values:]
    ids = IdMap(pl.Series(known), first=2, missing=1, other=0)
    assert np.array_equal(ids.ids(pl.Series(known)).to_numpy(), np.arange(2, 2 + len(known)))
    assert not ids.ids(pl.Series(unknown)).to_numpy().any()


def test_neighbours_and_one_hash():
    """Runs of equal and of consecutive first slots, the end of the table included."""
    inverse = pow(2654435769, -1, 2**32)
    keys = np.array(
        [(slot << 24 | low) * inverse % 2**32 for slot in (0, 254, 255) for low in range(40)],
        np.uint32,
    )
    assert len(set(keys.tolist())) == len(keys)
    assert np.array_equal(
        IdMap(pl.Series(keys), first=0, missing=-1, other=-2).ids(pl.Series(keys)).to_numpy(),
        np.arange(len(keys)),
    )
