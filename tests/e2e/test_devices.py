"""Training on several devices with the real torchrun; here the ranks use gloo on the CPU."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars
import polars.testing
import psutil
import pytest
from safetensors.numpy import load_file

from common.artifact import write_manifest
from common.config.loading import ConfigError
from common.config.params import Params
from common.layout import FEATURES
from tests.factories.features import training_params, write_features
from tests.factories.support import still_running
from training.distributed.sharding.placement_report import GATHERED, PLACEMENT_FILE, read_placement
from training.stage import train

pytestmark = pytest.mark.slow

# The ranks' shares of a batch of 63 rows differ, and the last batch of an epoch has 6 rows.
DAYS = {"train": [200, 121], "valid": [101], "test": [50]}

SGD: dict[str, Any] = {
    "dense_optimizer": {"name": "sgd", "lr": 0.1},
    "embedding_optimizer": {"name": "sgd", "lr": 0.1},
}
COMPOSED = {
    "interaction": {"name": "cross", "layers": 1, "rank": 4},
    "tables": {"name": "mixed_dim", "alpha": 0.5, "threshold": 3},
    "loss": {"name": "focal", "gamma": 1, "alpha": 0.5},
}
PER_COLUMN = {
    "embedding_dim": 8,
    "tables": {"name": "per_column", "dims": {"C1": 2, "C2": 0, "C3": 4}},
}


@pytest.mark.parametrize(
    ("parallel", "parts", "tables"),
    [
        ("data", {}, "sgd"),
        ("hybrid", COMPOSED, "rowwise_adagrad"),
        ("hybrid", PER_COLUMN, "rowwise_adagrad"),
    ],
)
def test_two_ranks_train_the_same_model_as_one(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    parallel: str,
    parts: dict[str, Any],
    tables: str,
) -> None:
    """The global batches are the same, so weights and curves are equal up to rounding."""
    if parallel != "data":
        pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")
    results = []
    for devices in (1, 2):
        root = tmp_path / str(devices)
        write_features(root, DAYS)
        optimizers = {
            "dense_optimizer": {"name": "sgd", "lr": 0.1},
            "embedding_optimizer": {"name": tables, "lr": 0.1},
        }
        train(
            training_params(
                parts, devices=devices, parallel=parallel, epochs=2, batch_size=63, **optimizers
            ),
            root,
        )
        model = root / "artifacts/model"
        curves = polars.read_csv(model / "history.csv")
        results.append((load_file(model / "weights.safetensors"), curves))
        out = capfd.readouterr().out
        assert out.count("train     100 %  642 rows") == 1  # only the first rank logs
        placement = read_placement(model / PLACEMENT_FILE)
        if parts is PER_COLUMN and devices == 2:
            assert {table.table: table.dim for table in placement} == (
                {f"C{k}": 8 for k in range(4, 27)} | {"C1": 2, "C3": 4}
            )
        kinds = {table.kind for table in placement}
        assert (kinds == {GATHERED}) == (parallel == "data" and devices == 2), kinds
        assert all(line.startswith("train ") for line in out.splitlines()), out
    (one, curves_one), (two, curves_two) = results
    assert one.keys() == two.keys()
    for name, weights in one.items():
        np.testing.assert_allclose(two[name], weights, rtol=1e-5, atol=1e-5, err_msg=name)
    polars.testing.assert_frame_equal(curves_two, curves_one, check_exact=False, abs_tol=1e-5)


def test_two_ranks_train_the_same_ensemble_as_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The members are trained one after another, each on both ranks."""
    results = []
    for devices in (1, 2):
        root = tmp_path / str(devices)
        write_features(root, DAYS)
        train(training_params(devices=devices, parallel="data", ensemble_size=2), root)
        model = root / "artifacts/model"
        found = [
            load_file(model / name) for name in ("weights.safetensors", "weights_2.safetensors")
        ]
        results.append((found, polars.read_csv(model / "history.csv")))
        assert capfd.readouterr().out.count("train     100 %  642 rows") == 1
        assert (model / PLACEMENT_FILE).exists() == (devices == 2)
        assert not list((root / "runs/checkpoints").iterdir())
    (one, curves_one), (two, curves_two) = results
    for of_one, of_two in zip(one, two, strict=True):
        for name, weights in of_one.items():
            np.testing.assert_allclose(of_two[name], weights, rtol=1e-5, atol=1e-5, err_msg=name)
    assert not np.array_equal(one[0]["top.0.weight"], one[1]["top.0.weight"])
    polars.testing.assert_frame_equal(curves_two, curves_one, check_exact=False, abs_tol=1e-5)


@pytest.mark.parametrize("parallel", ["data", "hybrid"])
def test_two_ranks_learn_the_same_from_a_teacher_as_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], parallel: str
) -> None:
    """Each rank reads the scores of its own rows; the teacher scores them once."""
    if parallel != "data":
        pytest.importorskip("torchrec", reason="TorchRec is not installed (make setup)")
    write_features(tmp_path / "teacher", DAYS)
    train(training_params(seed=7), tmp_path / "teacher")
    distill = {"teachers": [str(tmp_path / "teacher/artifacts/model")], "weight": 0.7}
    found = []
    for devices, values in ((1, {"distill": distill}), (2, {"distill": distill}), (1, {})):
        root = tmp_path / f"{devices} {len(values)}"
        write_features(root, DAYS)
        capfd.readouterr()
        train(
            training_params(
                devices=devices, parallel=parallel, epochs=2, batch_size=63, **SGD, **values
            ),
            root,
        )
        assert capfd.readouterr().out.count("score the training rows") == len(values)
        found.append(load_file(root / "artifacts/model/weights.safetensors"))
    one, two, alone = found
    for name, weights in one.items():
        np.testing.assert_allclose(two[name], weights, rtol=1e-5, atol=1e-5, err_msg=name)
    assert not np.allclose(alone["top.0.weight"], one["top.0.weight"], atol=1e-4)


def test_an_error_on_all_ranks_is_raised_once(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    with pytest.raises(
        ConfigError,
        match=r"^training diverged: .* at step \d+ of 6, .*train.dense_optimizer.lr 1e\+30",
    ):
        train(
            training_params(
                devices=2, parallel="data", dense_optimizer={"name": "sgd", "lr": 1e30}
            ),
            tmp_path,
        )
    assert not (tmp_path / "artifacts/model").exists()


def test_ranks_name_the_step_that_diverged(tmp_path: Path) -> None:
    """Ranks do not wait for the loss of a step.

    NaN is noticed at the next point of the training curve, but the message names the step that
    diverged.
    """
    schema = write_features(tmp_path, DAYS)
    path = tmp_path / "artifacts/features/train/day_00.parquet"
    values = polars.read_parquet(path).to_dict(as_series=False)
    values[schema.dense[0]][70] = float(
        "nan"
    )  # a row of the first rank's share of the second batch
    polars.DataFrame(values, schema=polars.read_parquet_schema(path)).write_parquet(path)
    write_manifest(tmp_path / FEATURES, {})
    with pytest.raises(
        ConfigError,
        match=r"train loss nan at step 2 of 660, .*the weights as of step 6 are in runs/diverged",
    ):
        train(
            training_params(
                devices=2, parallel="data", batch_size=63, shuffle_rows=0, epochs=110, validations=1
            ),
            tmp_path,
        )
    rows = load_file(tmp_path / "runs/diverged/batch.safetensors")
    np.testing.assert_allclose(rows["dense"][:, -1] * 1000, np.arange(63, 126), atol=1e-3)
    assert (tmp_path / "runs/diverged/state.safetensors").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_killed_run_leaves_no_rank(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    run = start(training_params(devices=2, parallel="data", epochs=100_000), tmp_path)
    assert run.stdout
    assert "2 ranks on cpu" in run.stdout.readline()
    assert run.stdout.readline().startswith("train ")  # from the first rank
    family = psutil.Process(run.pid).children(recursive=True)
    assert len(family) >= 3  # torchrun and its two ranks
    assert all_killed(run, family)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_killed_run_of_two_ranks_resumes_bit_for_bit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    params = training_params(
        devices=2,
        parallel="data",
        batch_size=20,
        epochs=8,
        shuffle_rows=100,
        checkpoint_minutes=1e-9,
    )
    bundles = []
    for name in ("unbroken", "killed"):
        root = tmp_path / name
        write_features(root, DAYS)
        if name == "killed":
            run = start(params, root)
            while not list(root.glob("runs/checkpoints/*/last.pt")):
                assert run.poll() is None
                time.sleep(0.01)
            assert all_killed(run, psutil.Process(run.pid).children(recursive=True))
        capfd.readouterr()
        train(params, root)
        bundles.append(
            {
                path: (root / "artifacts/model" / path).read_bytes()
                for path in ("weights.safetensors", "history.csv")
            }
        )
    assert bundles[0] == bundles[1]
    assert re.search(r"resumes at step [1-9]\d* of 136, saved in", capfd.readouterr().out)


def start(params: Params, root: Path) -> "subprocess.Popen[str]":
    """Train in another process."""
    code = """
import sys
from pathlib import Path
from common.config.params import Params
from common.logs import configure_logging
from training.stage import train

configure_logging()
train(Params.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""
    command = [sys.executable, "-c", code, params.model_dump_json(by_alias=True), str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def all_killed(run: "subprocess.Popen[str]", family: list[psutil.Process]) -> bool:
    """Kill a run, and return whether all processes in `family` end too."""
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    alive = still_running(family, within_s=20)
    for process in alive:
        process.kill()
    return not alive
