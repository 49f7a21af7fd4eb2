"""Parameter servers without staleness give the bits of a single device."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from common.bundle_layout import HISTORY, WEIGHTS
from common.config.params import Params
from tests.factories.features import training_params, write_features
from tests.factories.models import log_lines, make_project
from tests.factories.ranks import ends_of_ranks, on_ranks
from tests.factories.served_runs import (
    Fault,
    FaultyEngine,
    files_of,
    train_on_threads,
    with_servers,
    with_train,
)
from tests.factories.sharded_runs import fit_rank, fit_rank_until
from training.loop import feature_batches
from training.loop.checkpoint import checkpoints_of
from training.loop.lightning_module import TrainDLRM
from training.models import embedding_tables
from training.servers.session import ServersFailed
from training.stage import train

NUM_ROWS = 2100
DAYS = {"train": [1000, 560], "valid": [101], "test": [60]}
RUN: dict[str, Any] = {"logger": "none", "checkpoint_minutes": 1e-6, "threads": 1}
RUNS: dict[str, dict[str, Any]] = {
    "sgd": {
        "train": {
            "epochs": 2,
            "batch_size": 63,
            "dense_optimizer": {"name": "sgd", "lr": 0.5},
            "embedding_optimizer": {"name": "sgd", "lr": 5},
            "reset_embeddings_each_epoch": False,
            "weight_averaging": False,
        }
    },
    "all": {
        "train": {
            "epochs": 3,
            "batch_size": 31,
            "accumulate_grad_batches": 3,
            "max_grad_norm": 0.3,
            "warmup_steps": 5,
            "decay_steps": 20,
        }
    },
    "adagrad": {"train": {"epochs": 1, "dense_optimizer": {"name": "adagrad", "lr": 0.01}}},
    "quotient_remainder": {
        "model": {
            "tables": {
                "name": "quotient_remainder",
                "operation": "mult",
                "collisions": 4,
                "threshold": 8,
            }
        }
    },
    "mixed_dim": {"model": {"tables": {"name": "mixed_dim", "alpha": 0.5, "threshold": 8}}},
}


@pytest.fixture(autouse=True)
def _small_batches_of_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a validation have several batches, so that both workers score."""
    monkeypatch.setattr(feature_batches, "VALID_BATCH_SIZE", 16)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """Features, and parameters with averages, resets and two epochs."""
    root = tmp_path_factory.mktemp("project")
    params = make_project(root, log_lines(NUM_ROWS, seed=1))
    return root, with_train(params, epochs=2, validations=4, **RUN)


@pytest.fixture(scope="module")
def expected(project: tuple[Path, Params]) -> dict[str, bytes]:
    """The files of a single device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_batches, "VALID_BATCH_SIZE", 16)
        train(project[1], project[0])
    return files_of(project[0])


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_weights_and_curve_are_those_of_a_single_device(
    project: tuple[Path, Params], expected: dict[str, bytes], servers: int, workers: int
) -> None:
    root, params = project
    train_on_threads(with_servers(params, servers, workers), root)
    assert files_of(root) == expected


@pytest.mark.parametrize("name", RUNS)
def test_each_optimizer_and_kind_of_tables_gives_the_same_bits(tmp_path: Path, name: str) -> None:
    changes = RUNS[name]
    write_features(tmp_path, DAYS)
    params = training_params(**RUN | changes.get("train", {}))
    values = params.model_dump(by_alias=True)
    values["model"] |= changes.get("model", {})
    params = Params.model_validate(values)
    train(params, tmp_path)
    of_one_device = files_of(tmp_path)
    train_on_threads(with_servers(params, 3, 2), tmp_path)
    of_servers = files_of(tmp_path)
    if name != "sgd":
        assert of_servers == of_one_device
        return
    # The compiled operator of SGD adds the gradients of a row one by one, servers their sum.
    assert of_servers[HISTORY] == of_one_device[HISTORY]
    expected, found = (load(files[WEIGHTS]) for files in (of_one_device, of_servers))
    for weight, values in expected.items():
        np.testing.assert_allclose(found[weight], values, rtol=1e-5, atol=1e-6, err_msg=weight)


def interrupt_servers(params: Params, root: Path, servers: int, workers: int) -> None:
    """Train with parameter servers until the coordinator ends in the second epoch."""
    fault = Fault("worker", "the coordinator", "end_step", 11, "target", True)
    with pytest.raises(ServersFailed):
        train_on_threads(with_servers(params, servers, workers), root, FaultyEngine([fault]))
    assert checkpoints_of(params, "cpu", root).last()


def test_a_checkpoint_of_servers_goes_on_elsewhere(
    project: tuple[Path, Params], expected: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    root, params = project
    interrupt_servers(params, root, 2, 2)
    train_on_threads(with_servers(params, 3, 1), root)
    assert files_of(root) == expected
    interrupt_servers(params, root, 3, 1)
    train(params, root)
    assert files_of(root) == expected
    assert caplog.text.count("resumes at step ") == 2


def test_servers_go_on_from_the_checkpoint_of_a_single_device(
    project: tuple[Path, Params],
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root, params = project
    step = TrainDLRM.training_step

    def interrupted(module: TrainDLRM, *args: Any) -> None:
        if module.global_step == 11:
            raise KeyError("interrupted")
        step(module, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainDLRM, "training_step", interrupted)
        with pytest.raises(KeyError, match="interrupted"):
            train(params, root)
    assert checkpoints_of(params, "cpu", root).last()
    train_on_threads(with_servers(params, 2, 2), root)
    assert files_of(root) == expected
    assert "resumes at step " in caplog.text


@pytest.mark.slow
def test_a_checkpoint_of_servers_goes_on_under_hybrid_and_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")
    root, params = tmp_path, training_params(epochs=2, batch_size=156, **RUN)
    write_features(root, DAYS)
    train(params, root)
    expected = load(files_of(root)[WEIGHTS])
    hybrid = with_train(params, parallel="hybrid", devices=2)
    interrupt_servers(params, root, 2, 2)
    on_ranks(2, fit_rank, hybrid, root)
    under_hybrid = load(files_of(root)[WEIGHTS])
    assert "resumes at step" in (root / "output.txt").read_text()
    checkpoints_of(params, "cpu", root).remove()
    ends = ends_of_ranks(2, fit_rank_until, hybrid, root, 11)
    assert [kind for kind, _ in ends] == ["error"] * 2
    train_on_threads(with_servers(params, 3, 2), root)
    back_on_servers = load(files_of(root)[WEIGHTS])
    assert "resumes at step " in caplog.text
    for weight, values in expected.items():
        for found in (under_hybrid, back_on_servers):
            np.testing.assert_allclose(found[weight], values, rtol=1e-5, atol=1e-5)


def test_values_that_are_drawn_in_blocks_give_the_same_bits(
    project: tuple[Path, Params], expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_tables, "BLOCK_BYTES", 1000)
    root, params = project
    train_on_threads(with_servers(params, 2, 2), root)
    assert files_of(root) == expected


@pytest.mark.parametrize("bytes_at_once", [100, embedding_tables.BLOCK_BYTES])
def test_a_warm_start_gives_the_same_bits(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch, bytes_at_once: int
) -> None:
    root, params = project
    train(params, root)
    (root / "artifacts/model").rename(root / "before")
    params = with_train(params, warm_start_from="before")
    train(params, root)
    of_one_device = files_of(root)
    monkeypatch.setattr(embedding_tables, "BLOCK_BYTES", bytes_at_once)
    train_on_threads(with_servers(params, 2, 2), root)
    assert files_of(root) == of_one_device
    shutil.rmtree(root / "before")


def test_staleness_changes_the_result(
    project: tuple[Path, Params], expected: dict[str, bytes]
) -> None:
    root, params = project
    train_on_threads(with_servers(params, 2, 2, staleness=3), root)
    assert files_of(root, [WEIGHTS])[WEIGHTS] != expected[WEIGHTS]
