"""The score of a row depends on the row alone, so evaluation and predict agree bit for bit."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from common.bundle_layout import MODEL, STATE
from common.files import DataError
from common.layout import FEATURES
from features.encode.feature_state import FeatureState
from tests.factories.models import (
    log_lines,
    make_bundle,
    make_project,
    model_for,
    read_split,
    small_params,
)
from training.inference.bundle import Bundle, load_bundle
from training.inference.score import BATCH_ROWS, score


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    make_bundle(folder, make_project(folder, log_lines(3 * BATCH_ROWS, 2)))
    return folder


@pytest.fixture(scope="module", params=["odd widths", "the paper's widths"])
def bundle(root: Path, request: pytest.FixtureRequest) -> Bundle:
    loaded = load_bundle(root / MODEL)
    if request.param == "odd widths":
        return loaded
    widths = small_params(
        root, embedding_dim=16, bottom_mlp=[512, 256, 64], top_mlp=[512, 256]
    ).model
    model = model_for(FeatureState.load(root / FEATURES / STATE), widths).eval()
    return Bundle(model, loaded.state, loaded.manifest, loaded.version)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_score_does_not_depend_on_position_neighbours_or_number_of_rows(
    root: Path, bundle: Bundle, num_threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        frame = read_split(root, "train").head(2 * BATCH_ROWS + 37)
        scores = score(bundle, frame)
        order = np.random.default_rng(3).permutation(frame.height)
        assert np.array_equal(score(bundle, frame[order]), scores[order])
        for start, length in (
            (0, 1),
            (5, 3),
            (BATCH_ROWS - 1, 2),
            (BATCH_ROWS, 100),
            (2 * BATCH_ROWS + 36, 1),
        ):
            assert np.array_equal(
                score(bundle, frame.slice(start, length)), scores[start : start + length]
            )
    finally:
        torch.set_num_threads(before)


def test_scores_are_the_models_probabilities(root: Path, bundle: Bundle) -> None:
    frame = read_split(root, "test")
    dense_BN = torch.from_numpy(frame.select(bundle.state.schema.dense).to_numpy(order="c"))
    ids_BF = torch.from_numpy(frame.select(bundle.state.schema.categorical).to_numpy(order="c"))
    with torch.no_grad():
        expected = torch.sigmoid(bundle.model(dense_BN, ids_BF)).numpy()
    scores = score(bundle, frame)
    assert scores.dtype == np.float32
    assert np.std(scores) > 0
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_no_rows_have_no_scores(bundle: Bundle) -> None:
    assert score(bundle, pl.DataFrame(schema=bundle.state.output_columns)).shape == (0,)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 37, BATCH_ROWS, 2 * BATCH_ROWS - 1])
def test_a_score_that_is_no_number_is_refused_with_its_row(
    root: Path, bundle: Bundle, value: float, position: int
) -> None:
    """An infinite logit would become the score 0 or 1, which looks right."""
    frame = read_split(root, "train").head(2 * BATCH_ROWS)
    name = bundle.state.schema.dense_features[0]
    dense = frame[name].to_list()
    dense[position] = value
    damaged = frame.with_columns(pl.Series(name, dense, dtype=pl.Float32))
    with pytest.raises(DataError, match=rf"^here {position}: model \w+ computes [-naif]+, which"):
        score(bundle, damaged, "here {}".format)
    others = frame.with_row_index().filter(pl.col("index") != position).drop("index")
    assert np.isfinite(score(bundle, others)).all()
