"""The external sort gives the same metrics as a sort in memory, with bounded memory."""

import tracemalloc
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from training.evaluation import metrics
from training.evaluation.external_sort import NUM_CELLS, ONE, RUN_ROWS, Ranking

# The external sort first cuts the range of scores at this score.
MIDDLE = float(np.uint32((ONE + 1) // 2).view(np.float32))
# Both ends, negative zero, the smallest positive number, two neighbours and frequent scores.
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    1e-45,
    MIDDLE,
    0.5,
    float(np.nextafter(np.float32(0.5), np.float32(1))),
    0.1,
]
SCORES = st.sampled_from(SPECIAL) | st.floats(0, 1, width=32)
ROWS = st.lists(st.tuples(SCORES, st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=120)
FIRST_CELL = NUM_CELLS - 5  # the last cells, whose numbers use all bits


def expected_auc(labels: np.ndarray, scores: np.ndarray) -> Fraction | None:
    """Compute the AUC by its definition: compare every pair of rows."""
    clicked, other = scores[labels == 1][:, None], scores[labels == 0][None, :]
    if not clicked.size or not other.size:
        return None
    return Fraction(
        int(2 * (clicked > other).sum() + (clicked == other).sum()), 2 * clicked.size * other.size
    )


def subset_of(cells: list[int]) -> np.ndarray:
    return np.isin(np.arange(NUM_CELLS), np.array(cells) + FIRST_CELL)


@settings(deadline=None)
@given(ROWS, st.integers(1, 40), st.integers(1, 30))
def test_metrics_of_subsets_agree_with_metrics_in_memory(
    rows: list[tuple[float, int, int]], run_rows: int, step: int
) -> None:
    scores, labels, cells = (np.array(values) for values in zip(*rows, strict=True))
    scores = scores.astype(np.float32)
    ranking = Ranking(None, run_rows)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        ranking.add(labels[part], scores[part], cells[part] + FIRST_CELL)
    subsets = [[0, 1, 2, 3, 4], [2], [0, 3]]
    sums_of = metrics.sums_of_subsets(ranking, [subset_of(subset) for subset in subsets])
    for subset, sums in zip(subsets, sums_of, strict=True):
        here = np.isin(cells, subset)
        assert sums.num_rows == sums.weight_so_far == here.sum()
        if here.any():
            auc = expected_auc(labels[here], scores[here])
            actual = metrics.compute_metrics(sums)
            # Exactly equal, because both are the float64 nearest to the ratio.
            assert actual["auc"] == (None if auc is None else float(auc))
            assert actual["accuracy"] == ((scores[here] > 0.5) == (labels[here] == 1)).mean()
            whole = metrics.metrics_of_rows(labels[here], scores[here])
            assert [actual[name] is None for name in whole] == [
                value is None for value in whole.values()
            ]
            assert [actual[name] or 0 for name in whole] == pytest.approx(
                [value or 0 for value in whole.values()], rel=1e-12
            )


@settings(deadline=None)
@given(ROWS, st.integers(1, 40))
@example([(MIDDLE, label, cell) for label in (0, 1) for cell in (0, 1)], 1)
def test_blocks_have_all_rows_in_order_and_equal_scores_together(
    rows: list[tuple[float, int, int]], run_rows: int
) -> None:
    ranking = Ranking(None, run_rows)
    scores, labels, cells = (np.array(values) for values in zip(*rows, strict=True))
    ranking.add(labels, scores.astype(np.float32), cells)
    blocks = list(ranking.blocks())
    actual = [
        (float(bits.view(np.float32)), int(clicked), int(cell))
        for block in blocks
        for bits, clicked, cell, num_rows in zip(*block[:4], strict=True)
        for _ in range(num_rows)
    ]
    assert actual == sorted(
        (float(np.float32(score)) + 0.0, label, cell) for score, label, cell in rows
    )
    for before, after in pairwise(blocks):
        assert before.score_bits[-1] < after.score_bits[0]
    assert len(list(ranking.blocks())) == len(blocks)  # a second reading gives the same blocks


@settings(deadline=None)
@given(ROWS.filter(lambda rows: any(cell for *_, cell in rows)), st.integers(1, 40))
def test_a_row_of_a_weight_counts_as_so_many_rows(
    rows: list[tuple[float, int, int]], run_rows: int
) -> None:
    """The third number of a row is its weight, 0 to 4; the reference repeats the rows."""
    scores, labels, weights = (np.array(values) for values in zip(*rows, strict=True))
    scores = scores.astype(np.float32)
    ranking = Ranking(None, run_rows)
    for start in range(0, len(rows), 7):
        part = slice(start, start + 7)
        ranking.add(labels[part], scores[part], 0, weights[part].astype(np.float32))
    found = metrics.compute_metrics(metrics.sums_of_all(ranking))
    expected = metrics.metrics_of_rows(np.repeat(labels, weights), np.repeat(scores, weights))
    assert found["num_rows"] == len(rows)
    for name, value in expected.items():
        if name not in ("num_rows", "ece"):  # the groups of ece have other ends
            assert found[name] == (None if value is None else pytest.approx(value, rel=1e-12)), name


def test_the_bootstrap_of_weights_1_is_that_of_no_weights() -> None:
    random = np.random.default_rng(5)
    scores = random.random(3000).astype(np.float32)
    labels = (random.random(3000) < scores).astype(np.int8)
    plain, ones = (
        metrics.bootstrap_intervals(metrics.sums_of_rows(labels, scores, weights), 50, 1)
        for weights in (None, np.ones(3000))
    )
    assert ones == pytest.approx(plain, rel=1e-12)
    doubled = metrics.sums_of_rows(labels, scores, np.full(3000, 2.0))
    assert metrics.bootstrap_intervals(doubled, 50, 1) == pytest.approx(plain, rel=1e-12)


def test_runs_that_are_cut_many_times() -> None:
    """Each run has several samples. The scores are close to each other, and some are equal."""
    random = np.random.default_rng(3)
    scores = (0.2 + 0.001 * random.random(100_000)).astype(np.float32).round(7)
    labels = random.random(100_000) < 1000 * (scores - 0.2)
    ranking = Ranking(None, run_rows=1 << 14)
    for part in np.split(np.arange(100_000), 40):
        ranking.add(labels[part], scores[part])
    blocks = list(ranking.blocks())
    assert max(len(block.rows) for block in blocks) <= 1 << 14
    bits = np.concatenate([np.repeat(block.score_bits, block.rows) for block in blocks])
    assert np.array_equal(bits.view(np.float32), np.sort(scores))
    sums = metrics.sums_of_all(ranking)
    assert metrics.auc(sums) == pytest.approx(roc_auc_score(labels, scores), rel=1e-12)


def test_a_constant_score_needs_few_records_for_any_number_of_rows(tmp_path: Path) -> None:
    """A model that has learned nothing gives every row the same score."""
    ranking = Ranking(tmp_path)
    for _ in range(5):
        ranking.add(np.arange(RUN_ROWS) % 4 == 0, np.full(RUN_ROWS, 0.25, np.float32))
    (block,) = ranking.blocks()
    assert len(block.rows) == 10
    sums = metrics.sums_of_all(ranking)
    actual = metrics.compute_metrics(sums)
    assert (actual["auc"], actual["ece"], actual["calibration_ratio"], actual["num_rows"]) == (
        0.5,
        0,
        1,
        5 * RUN_ROWS,
    )


def peak_bytes(directory: Path, num_rows: int) -> int:
    tracemalloc.start()
    ranking, rng = Ranking(directory, run_rows=1 << 13), np.random.default_rng(1)
    for _ in range(num_rows >> 12):
        ranking.add(rng.integers(0, 2, 1 << 12), rng.beta(2, 9, 1 << 12).astype(np.float32))
    metrics.sums_of_all(ranking)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    few, many = peak_bytes(tmp_path, 1 << 16), peak_bytes(tmp_path, 1 << 20)
    print(f"{few / 2**20:.1f} MiB for 65,536 rows, {many / 2**20:.1f} MiB for 16 times as many")
    assert many < 1.3 * few
    assert list(tmp_path.iterdir()) == []  # the file of runs is an anonymous temporary file


@pytest.mark.parametrize("score", [float("nan"), -1e-3, 1.001, float("inf")])
def test_a_score_that_is_not_a_probability_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match=f"scores of 0 .. 1 expected, found {score:.4g}"):
        Ranking(None).add(np.zeros(2), np.array([0.5, score], np.float32))
    with pytest.raises(ValueError, match=r"cells 0 .. \d+ expected, found -1 .. 0"):
        Ranking(None).add(np.zeros(2), np.zeros(2, np.float32), np.array([0, -1]))
