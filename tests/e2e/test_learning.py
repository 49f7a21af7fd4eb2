"""The shipped defaults learn what there is to learn, on generated and on real rows, and nothing where there is nothing."""

import numpy as np
import polars as pl
import pytest

from common.bundle_layout import MODEL
from common.config.params import Params
from common.files import read_json
from features.collect.stage import RAW, SAMPLE_LOG
from features.encode.stage import FEATURES
from tests.factories.support import make_features, make_params, real_log
from training.evaluation.stage import EVALUATION, evaluate
from training.inference.predict import predict
from training.stage import train

NUM_ROWS = 150_000


def run(root, params: Params):
    """All stages below root; the metrics."""
    make_features(root, params)
    train(params, root)
    evaluate(params, root)
    return read_json(root / EVALUATION / "metrics.json")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    root = tmp_path_factory.mktemp("learned")
    return root, run(root, make_params(sample__num_rows=NUM_ROWS))


def gap_closed(labels, truth, logloss):
    """Share of the way from the best constant to the true probabilities, in logloss on these rows."""
    rate = labels.mean()
    constant = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    optimum = -np.mean(np.where(labels == 1, np.log(truth), np.log1p(-truth)))
    return (constant - logloss) / (constant - optimum)


def test_most_of_the_gap_is_closed(learned):
    root, metrics = learned
    truth = pl.read_parquet(root / RAW / f"{SAMPLE_LOG}.truth.parquet")["probability"].to_numpy()
    for split, end in (("valid", NUM_ROWS - metrics["test"]["num_rows"]), ("test", NUM_ROWS)):
        labels = pl.read_parquet(root / FEATURES / split / "*.parquet")["label"].to_numpy()
        closed = gap_closed(labels, truth[end - len(labels) : end], metrics[split]["logloss"])
        print(f"{split}: {closed:.1%} of the gap closed")
        assert 0.7 <= closed <= 1


def test_shuffled_labels_close_none(learned, tmp_path):
    """Rows without a signal: whatever was closed above was not learned by heart."""
    lines = (learned[0] / RAW / SAMPLE_LOG).read_bytes().splitlines(keepends=True)[: NUM_ROWS // 2]
    order = np.random.default_rng(1).permutation(len(lines))
    (tmp_path / "shuffled.tsv").write_bytes(
        b"".join(lines[k][:1] + line[1:] for k, line in zip(order, lines, strict=True))
    )
    metrics = run(tmp_path, make_params(data__source="shuffled.tsv"))
    labels = pl.read_parquet(tmp_path / FEATURES / "test" / "*.parquet")["label"].to_numpy()
    constant = -(
        labels.mean() * np.log(labels.mean()) + (1 - labels.mean()) * np.log1p(-labels.mean())
    )
    assert metrics["test"]["logloss"] > constant - 0.001
    assert abs(metrics["test"]["auc"] - 0.5) < 0.02


def test_predict_and_evaluate_agree_bit_for_bit(learned):
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
def test_real_rows(tmp_path, name):
    log = real_log(f"criteo/{name}")
    metrics = run(tmp_path, make_params(data__source=str(log)))
    assert metrics["test"]["logloss"] < 0.7
    predict(
        tmp_path / MODEL,
        real_log("criteo/kaggle_test_unlabelled_3k.tsv"),
        tmp_path / "scores.parquet",
    )
    assert pl.read_parquet(tmp_path / "scores.parquet").height == 3000


def test_real_rows_quality(tmp_path):
    """Train on the first six sevenths, test on the last half of the last one."""
    metrics = run(tmp_path, make_params(data__source=str(real_log("criteo/kaggle_span_80k.tsv"))))
    assert metrics["test"]["auc"] >= 0.74
