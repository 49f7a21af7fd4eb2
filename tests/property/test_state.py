"""Vocabularies and ids do not depend on row order, on shards, or on how rows are cut into batches."""

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from features.state import MISSING, NUM_RESERVED, UNSEEN, FeatureState
from features.vocabulary import fit_vocabulary
from tests.support import CRITEO

VALUES = st.lists(st.one_of(st.none(), st.integers(0, 12), st.integers(0, 2**32 - 1)), min_size=1, max_size=60)


def frame(values):
    return pl.DataFrame({"C1": pl.Series(values, dtype=pl.UInt32)})


def rows_of(values):
    """Whole rows, every categorical column alike."""
    dense = {name: pl.Series(range(-2, len(values) - 2), dtype=pl.Int64) for name in CRITEO.dense}
    return pl.DataFrame({**dense, **{name: pl.Series(values, dtype=pl.UInt32) for name in CRITEO.categorical}})


@settings(max_examples=150, deadline=None)
@given(VALUES, st.integers(1, 3), st.randoms(use_true_random=False))
def test_frequency_order(values, min_count, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    fitted = fit_vocabulary(frame(values).lazy(), "C1", "frequency", min_count)
    assert fitted.values.equals(fit_vocabulary(frame(shuffled).lazy(), "C1", "frequency", min_count).values)
    counts = {value: values.count(value) for value in set(values) - {None}}
    expected = sorted((value for value, count in counts.items() if count >= min_count), key=lambda value: (-counts[value], value))
    assert fitted.values.to_list() == expected
    assert fitted.num_distinct == len(counts)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_appearance_order(values):
    fitted = fit_vocabulary(frame(values).lazy(), "C1", "appearance", 1)
    assert fitted.values.to_list() == list(dict.fromkeys(value or 0 for value in values))


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES, st.sampled_from(["frequency", "appearance"]), st.integers(0, 60))
def test_transform(train, values, ids, cut):
    vocabulary = fit_vocabulary(frame(train).lazy(), "C1", ids, 2 if ids == "frequency" else 1).values
    state = FeatureState(CRITEO, ids, dict.fromkeys(CRITEO.categorical, vocabulary))
    rows = rows_of(values)
    ready = state.transform(rows)
    assert ready.dtypes == [pl.Float32] * len(CRITEO.dense) + [pl.Int32] * len(CRITEO.categorical)
    known = {value: place for place, value in enumerate(vocabulary)}
    for value, found in zip(values, ready["C1"], strict=True):
        assert 0 <= found < state.cardinalities[0]
        if ids == "frequency":
            assert found == (MISSING if value is None else known[value] + NUM_RESERVED if value in known else UNSEEN)
        else:
            assert found == known.get(value or 0, len(vocabulary))
    assert pl.concat([state.transform(rows[:cut]), state.transform(rows[cut:])]).equals(ready)
    assert state.transform(rows.reverse()).equals(ready.reverse())


@settings(max_examples=20, deadline=None)
@given(VALUES)
def test_save_load(tmp_path_factory, values):
    vocabulary = fit_vocabulary(frame(values).lazy(), "C1", "frequency", 1).values
    state = FeatureState(CRITEO, "frequency", dict.fromkeys(CRITEO.categorical, vocabulary))
    directory = tmp_path_factory.mktemp("state") / "state"
    state.save(directory)
    loaded = FeatureState.load(directory)
    assert loaded.fingerprint == state.fingerprint
    assert loaded.transform(rows_of(values)).equals(state.transform(rows_of(values)))
