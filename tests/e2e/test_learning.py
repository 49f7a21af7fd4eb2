"""The default parameters learn from generated and real rows, and learn nothing from noise."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from common.bundle_layout import MODEL
from common.config.params import Params
from common.files import read_json
from common.layout import EVALUATION, FEATURES, RAW
from features.collect.stage import SAMPLE_LOG
from tests.factories.support import make_features, make_params, real_log
from training.evaluation.stage import evaluate
from training.inference.predict import predict
from training.stage import train

pytestmark = pytest.mark.slow

NUM_ROWS = 150_000
Learned = tuple[Path, dict[str, Any]]  # the project folder and its metrics


def run(root: Path, params: Params) -> dict[str, Any]:
    """Run all stages in a project folder, and return the metrics."""
    make_features(root, params)
    train(params, root)
    evaluate(params, root)
    metrics: dict[str, Any] = read_json(root / EVALUATION / "metrics.json")
    return metrics


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    root = tmp_path_factory.mktemp("learned")
    return root, run(root, make_params(sample__num_rows=NUM_ROWS))


def entropy(rate: float) -> float:
    """Return the logloss of always predicting the click rate."""
    return float(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def gap_closed(labels: NDArray[Any], truth: NDArray[Any], logloss: float) -> float:
    """Return the share of the possible improvement over a constant score that a logloss reaches.

    A constant score has the share 0, and the true probabilities have the share 1.
    """
    constant = entropy(labels.mean())
    optimum = -np.mean(np.where(labels == 1, np.log(truth), np.log1p(-truth)))
    return float((constant - logloss) / (constant - optimum))


def test_the_model_reaches_most_of_the_possible_improvement(learned: Learned) -> None:
    root, metrics = learned
    truth = pl.read_parquet(root / RAW / f"{SAMPLE_LOG}.truth.parquet")["probability"].to_numpy()
    for split, end in (("valid", NUM_ROWS - metrics["test"]["num_rows"]), ("test", NUM_ROWS)):
        labels = pl.read_parquet(root / FEATURES / split / "*.parquet")["label"].to_numpy()
        closed = gap_closed(labels, truth[end - len(labels) : end], metrics[split]["logloss"])
        print(f"{split}: {closed:.1%} of the gap closed")
        assert 0.7 <= closed <= 1


def test_nothing_is_learned_from_shuffled_labels(learned: Learned, tmp_path: Path) -> None:
    """Memorised rows give no skill, so the improvement above comes from the signal."""
    lines = (learned[0] / RAW / SAMPLE_LOG).read_bytes().splitlines(keepends=True)[: NUM_ROWS // 2]
    order = np.random.default_rng(1).permutation(len(lines))
    (tmp_path / "shuffled.tsv").write_bytes(
        b"".join(lines[k][:1] + line[1:] for k, line in zip(order, lines, strict=True))
    )
    metrics = run(tmp_path, make_params(data__source="shuffled.tsv"))
    labels = pl.read_parquet(tmp_path / FEATURES / "test" / "*.parquet")["label"].to_numpy()
    assert metrics["test"]["logloss"] > entropy(labels.mean()) - 0.001
    assert abs(metrics["test"]["auc"] - 0.5) < 0.02


def test_predict_and_evaluate_agree_bit_for_bit(learned: Learned) -> None:
    root, metrics = learned
    predict(root / MODEL, root / RAW / SAMPLE_LOG, root / "scores.parquet")
    predicted = pl.read_parquet(root / "scores.parquet")
    assert predicted["line"].to_list() == list(range(1, NUM_ROWS + 1))
    evaluated = pl.read_parquet(root / EVALUATION / "scores.parquet")
    assert predicted["score"].tail(evaluated.height).equals(evaluated["score"])
    assert (
        evaluated["split"].to_list()
        == ["valid"] * metrics["valid"]["num_rows"] + ["test"] * metrics["test"]["num_rows"]
    )


@pytest.mark.parametrize(
    "name", ["kaggle_span_10k.tsv", "kaggle_head_10k.tsv", "terabyte_1k.tsv.gz"]
)
def test_real_rows(tmp_path: Path, name: str) -> None:
    log = real_log(f"criteo/{name}")
    metrics = run(tmp_path, make_params(data__source=str(log)))
    assert metrics["test"]["logloss"] < 0.7
    predict(
        tmp_path / MODEL,
        real_log("criteo/kaggle_test_unlabelled_3k.tsv"),
        tmp_path / "scores.parquet",
    )
    assert pl.read_parquet(tmp_path / "scores.parquet").height == 3000


def test_quality_on_real_rows(tmp_path: Path) -> None:
    """The first six sevenths of the rows are for training, and the last fourteenth for testing."""
    metrics = run(tmp_path, make_params(data__source=str(real_log("criteo/kaggle_span_80k.tsv"))))
    assert metrics["test"]["auc"] >= 0.74
