"""A KeyTable gives the positions that dictionaries would give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.online.key_table import MAX_WINDOW, KeyTable

KEYS = {
    "32 bits": st.integers(0, 2**32 - 1) | st.integers(0, 9),
    "signed 32 bits": st.integers(-(2**31), 2**31 - 1) | st.integers(-5, 5),
    "64 bits": st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5),
}
ANY_KEY = st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**32), 2**33)


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_the_positions_are_those_of_dictionaries(keys: st.SearchStrategy[int]) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.data(), st.lists(st.lists(keys, unique=True, max_size=30), min_size=1, max_size=4))
    def check(data: st.DataObject, vocabularies: list[list[int]]) -> None:
        columns = data.draw(st.permutations([*range(len(vocabularies)), 0]))
        known = [key for of_one in vocabularies for key in of_one]
        asked = st.sampled_from(known) | ANY_KEY if known else ANY_KEY
        row = st.lists(asked, min_size=len(columns), max_size=len(columns))
        rows = data.draw(st.lists(row, min_size=1, max_size=5))
        table = KeyTable([np.array(of_one, np.int64) for of_one in vocabularies], columns)
        found = table.positions_of(np.array(rows, np.int64))
        positions = [{key: k for k, key in enumerate(of_one)} for of_one in vocabularies]
        expected = [
            [positions[column].get(key, -1) for key, column in zip(keys, columns, strict=True)]
            for keys in rows
        ]
        assert found.dtype == np.int32
        assert found.tolist() == expected

    check()


@pytest.mark.parametrize("stride", [1, 2**11, 2**20])
def test_a_large_vocabulary(stride: int) -> None:
    num_keys = 2**31 // stride if stride > 2**11 else 1_000_000
    keys = np.arange(num_keys, dtype=np.int64) * stride
    table = KeyTable([keys], [0])
    sample = np.random.default_rng(0).integers(0, num_keys, 10_000)
    assert np.array_equal(table.positions_of(keys[sample, None])[:, 0], sample)
    assert (table.positions_of(keys[sample, None] + stride * num_keys) == -1).all()
    assert table.num_bytes <= 16 * num_keys + 1000


def test_keys_that_share_a_bucket_are_refused() -> None:
    same = np.zeros(MAX_WINDOW + 1, np.int64)
    with pytest.raises(ValueError, match="33 keys share a bucket, 32 are allowed"):
        KeyTable([same], [0])
