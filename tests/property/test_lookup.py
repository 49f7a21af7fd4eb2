"""The hash table finds what is in it, at its place, and nothing else."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.lookup import NOT_THERE, Lookup

NEAR = st.integers(0, 40)  # crowds a few slots, zero among them
WORDS = st.lists(st.one_of(NEAR, st.integers(0, 2**32 - 1)), max_size=80, unique=True)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS)
def test_places(values, others):
    lookup = Lookup(np.array(values, np.uint32))
    wanted = [*others, *values, *others]
    places = {value: place for place, value in enumerate(values)}
    assert lookup(np.array(wanted, np.uint32)).tolist() == [places.get(value, NOT_THERE) for value in wanted]


def test_many():
    values = np.random.default_rng(1).permutation(300_000).astype(np.uint32) * np.uint32(7)
    lookup = Lookup(values)
    assert (lookup(values) == np.arange(len(values))).all()
    assert (lookup(values + np.uint32(1)) == NOT_THERE).all()
