"""An IdMap gives the ids that a dictionary would give, for every kind of column."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.encode import id_map
from features.encode.id_map import IdMap

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
def test_the_ids_are_those_of_a_dictionary(data: st.DataObject, dtype: type[pl.DataType]) -> None:
    value = KINDS[dtype]
    known = data.draw(st.lists(value, unique=True, max_size=40))
    column = data.draw(st.lists(st.none() | value | st.sampled_from(known or [None]), max_size=40))
    num_values = data.draw(st.integers(0, len(known)))
    lookup = IdMap(pl.Series(known, dtype=dtype), first_id=7, missing_id=1, unseen_id=0)
    ids = lookup.truncated(num_values).ids_of(pl.Series("column", column, dtype=dtype))
    position = {value: 7 + k for k, value in enumerate(known[:num_values])}
    assert (ids.name, ids.dtype) == ("column", pl.Int32)
    assert ids.to_list() == [1 if value is None else position.get(value, 0) for value in column]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([1, 2, 1000]))
def test_texts_with_equal_hashes_keep_their_ids(data: st.DataObject, num_hashes: int) -> None:
    """The hash is a remainder, so that known and unseen texts collide."""
    texts = st.integers(0, 5000).map(str)
    known = data.draw(st.lists(texts, unique=True, min_size=1, max_size=4))
    column = data.draw(st.lists(st.none() | texts | st.sampled_from(known), max_size=40))

    def hashes(texts: pl.Series) -> NDArray[np.int64]:
        return np.array([int(text or 0) % num_hashes for text in texts], np.int64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_map, "_hashes", hashes)
        lookup = IdMap(pl.Series(known), first_id=2, missing_id=1, unseen_id=0)
        ids = lookup.ids_of(pl.Series(column, dtype=pl.String))
    position = {value: 2 + k for k, value in enumerate(known)}
    assert ids.to_list() == [1 if text is None else position.get(text, 0) for text in column]


@pytest.mark.parametrize("num_values", [1, 1000, 1_000_000])
def test_a_vocabulary_of_any_size(num_values: int) -> None:
    random = np.random.default_rng(num_values)
    values = np.unique(random.integers(0, 2**32, num_values + 1000, dtype=np.uint32))
    random.shuffle(values)
    known, unknown = values[:num_values], values[num_values:]
    lookup = IdMap(pl.Series(known), first_id=2, missing_id=1, unseen_id=0)
    assert np.array_equal(lookup.ids_of(pl.Series(known)).to_numpy(), np.arange(2, 2 + len(known)))
    assert not lookup.ids_of(pl.Series(unknown)).to_numpy().any()
