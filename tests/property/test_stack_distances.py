"""Stack distances agree with their definition, and a trace has the stack distances of its log."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.bench.stack_distance import FIRST, DistanceHistogram, stack_distances
from training.bench.trace import random_ids, trace_column, trace_ids

streams = st.lists(st.integers(0, 12), max_size=80).map(lambda ids: np.array(ids, np.int64))


def naive_distances(ids: list[int]) -> list[int]:
    """Count the distinct ids since the previous access to the same id, in quadratic time."""
    distances = []
    for t, row in enumerate(ids):
        before = ids[:t]
        distances.append(len({*before[-1 - before[::-1].index(row) :]}) if row in before else FIRST)
    return distances


def lru_hits(ids: list[int], cache_rows: int) -> int:
    """Count the hits of a simulated LRU cache."""
    cache: list[int] = []
    hits = 0
    for row in ids:
        if row in cache:
            hits += 1
            cache.remove(row)
        cache = [*cache, row][-cache_rows:]
    return hits


@settings(deadline=None)
@given(streams)
def test_distances_agree_with_the_definition(ids: np.ndarray) -> None:
    assert stack_distances(ids).tolist() == naive_distances(ids.tolist())


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=2000, unique=True), st.integers(0, 2**32)
)
def test_long_streams_of_wide_ids(values: list[int], seed: int) -> None:
    ids = np.random.default_rng(seed).choice(np.array(values), 300)
    assert stack_distances(ids).tolist() == naive_distances(ids.tolist())


@settings(deadline=None)
@given(streams.filter(len), st.integers(1, 15))
def test_hit_rate_agrees_with_a_simulated_cache(ids: np.ndarray, cache_rows: int) -> None:
    histogram = DistanceHistogram.of(stack_distances(ids))
    assert histogram.hit_rate(cache_rows) == lru_hits(ids.tolist(), cache_rows) / len(ids)
    assert histogram.num_accesses == len(ids)
    assert histogram.num_rows == len(np.unique(ids))
    assert histogram.hit_rate([0, len(ids)]).tolist() == [
        0,
        (len(ids) - histogram.num_rows) / len(ids),
    ]


@settings(deadline=None)
@given(
    st.lists(streams.filter(len), min_size=1, max_size=3).map(
        lambda columns: [c[: min(map(len, columns))] for c in columns]
    ),
    st.integers(0),
)
def test_a_trace_has_the_stack_distances_of_its_log(columns: list[np.ndarray], seed: int) -> None:
    log = np.column_stack(columns)
    trace = trace_ids(log, np.random.default_rng(seed))
    assert trace.shape == log.shape
    for log_T, trace_T in zip(log.T, trace.T, strict=True):
        assert {*trace_T.tolist()} == {*log_T.tolist()}
        assert sorted(stack_distances(trace_T)) == sorted(stack_distances(log_T))


def test_a_trace_differs_from_its_log_and_depends_on_the_seed() -> None:
    log = random_ids(500, [40], np.random.default_rng(1))
    traces = [trace_ids(log, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(traces[0], traces[1])
    assert not np.array_equal(traces[0], traces[2])
    assert not np.array_equal(traces[0], log)


def test_a_distance_larger_than_the_stack_is_used_later() -> None:
    """A distance of 3 is only possible after three first accesses."""
    for seed in range(20):
        trace = trace_column(
            np.array([0, 0, 0, 3]), np.array([7, 8, 9]), np.random.default_rng(seed)
        )
        assert trace.tolist() == [7, 8, 9, 7]


def test_random_ids_are_uniform_within_their_column() -> None:
    ids = random_ids(20_000, [4, 1000], np.random.default_rng(0))
    assert np.abs(np.bincount(ids[:, 0], minlength=4) - 5000).max() < 300
    assert 0 <= ids[:, 1].min() < ids[:, 1].max() < 1000
