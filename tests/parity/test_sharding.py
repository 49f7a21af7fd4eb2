"""Ranks with sharded tables and one device have the same batches, weights and curves."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.testing
import pytest
from safetensors.numpy import load_file

from common.config.params import Params
from tests.factories.features import training_params, write_features
from tests.factories.ranks import on_ranks
from tests.factories.sharded_runs import fit_rank
from training import stage as train
from training.distributed.sharding.placement_report import PLACEMENT_FILE, read_placement
from training.inference.bundle import load_bundle
from training.inference.score import score
from training.loop import feature_batches

pytestmark = pytest.mark.slow

pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")

# 25 batches of 63 rows, the last of 48; or 17 batches of 93 rows, the last of 72
DAYS = {"train": [1000, 560], "valid": [101], "test": [60]}
RUN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 63,
    "warmup_steps": 5,
    "decay_steps": 20,
    "checkpoint_minutes": 1000,
    "logger": "none",
}
RUNS: dict[str, dict[str, Any]] = {
    "sgd": {
        "dense_optimizer": {"name": "sgd", "lr": 0.5},
        "embedding_optimizer": {"name": "sgd", "lr": 5},
    },
    "rowwise_adagrad": {
        "embedding_optimizer": {"name": "rowwise_adagrad", "lr": 0.05},
        "dense_optimizer": {"name": "adam", "lr": 0.003},
    }
    | {
        "epochs": 3,
        "batch_size": 31,
        "accumulate_grad_batches": 3,
        "max_grad_norm": 0.3,
        "reset_embeddings_each_epoch": True,
        "weight_averaging": True,
    },
}
GOLDEN = Path(__file__).parent / "sharding_curves.csv"


@pytest.fixture(scope="module", params=RUNS)
def alone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The name of a run, and its folder after training on one device."""
    root = tmp_path_factory.mktemp("alone")
    write_features(root, DAYS)
    on_ranks(1, train.train, training_params(**RUN | RUNS[request.param]), root)
    return request.param, root


def curves_of(root: Path) -> pl.DataFrame:
    """Return the training curves of a bundle."""
    return pl.read_csv(root / "artifacts/model/history.csv")


def test_the_training_curves_equal_the_recorded_ones(alone: tuple[str, Path]) -> None:
    name, root = alone
    expected = pl.read_csv(GOLDEN).filter(pl.col("run") == name).drop("run")
    # Accuracy and AUC are left out: rounding on another machine may change the class of a row.
    columns = ["step", "split", "loss"]
    polars.testing.assert_frame_equal(
        curves_of(root).select(columns), expected.select(columns), check_exact=False, abs_tol=2e-5
    )


@pytest.mark.parametrize(("parallel", "num_ranks"), [("data", 2), ("model", 2), ("model", 4)])
def test_ranks_train_the_same_model_as_one_device(
    alone: tuple[str, Path], tmp_path: Path, parallel: str, num_ranks: int
) -> None:
    """Compare logits, weights and curves after 50 steps. Four ranks are on two nodes."""
    name, root = alone
    write_features(tmp_path, DAYS)
    on_ranks(
        num_ranks,
        fit_rank,
        training_params(devices=num_ranks, parallel=parallel, **RUN | RUNS[name]),
        tmp_path,
        ranks_per_node=2,
    )
    expected, found = (
        load_file(path / "artifacts/model/weights.safetensors") for path in (root, tmp_path)
    )
    assert expected.keys() == found.keys()
    for weight, values in expected.items():
        np.testing.assert_allclose(found[weight], values, rtol=1e-5, atol=1e-5, err_msg=weight)
    frame = pl.read_parquet(root / "artifacts/features/test/day_00.parquet")
    scores = [
        score(load_bundle(path / "artifacts/model"), frame).astype(np.float64)
        for path in (root, tmp_path)
    ]
    logits = [np.log(s / (1 - s)) for s in scores]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)
    assert logits[0].std() > 0.3
    if num_ranks == 4:
        placement = read_placement(tmp_path / "artifacts/model" / PLACEMENT_FILE)
        kinds = {table.kind for table in placement}
        assert kinds >= {"row_wise, cached", "table_wise, cached", "replicated"}
    polars.testing.assert_frame_equal(
        curves_of(tmp_path), curves_of(root), check_exact=False, abs_tol=1e-5
    )


FROZEN = {
    "dense_optimizer": {"name": "sgd", "lr": 1e-30},
    "embedding_optimizer": {"name": "sgd", "lr": 1e-30},
}


def validated(params: Params, root: Path) -> list[tuple[Any, ...]]:
    """Run one rank's part of the train stage, and return its validations."""
    # The 101 validation rows are 9 batches, so one of two ranks gets an empty batch.
    feature_batches.VALID_BATCH_SIZE = 12
    seen: list[Any] = []
    write_history = train.write_history
    train.write_history = lambda path, points: (seen.extend(points), write_history(path, points))
    fit_rank(params, root)
    return [tuple(point) for point in seen if point.split == "valid"]


def test_validation_on_ranks_equals_that_of_one_device_bit_for_bit(tmp_path: Path) -> None:
    figures = []
    for parallel, num_ranks in (("data", 1), ("data", 2), ("model", 3)):
        root = tmp_path / f"{parallel}{num_ranks}"
        write_features(root, DAYS)
        params = training_params(
            devices=num_ranks, parallel=parallel, batch_size=780, logger="none", **FROZEN
        )
        figures.append(on_ranks(num_ranks, validated, params, root)[0])
    assert len(figures[0]) == 2
    assert figures[1:] == figures[:1] * 2
