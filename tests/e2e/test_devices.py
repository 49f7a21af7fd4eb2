"""Several devices through the real torchrun, here gloo ranks on the CPU."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars
import polars.testing
import psutil
import pytest
from safetensors.numpy import load_file

from features.params import ConfigError
from tests.small_features import make_params, write_features
from tests.support import still_running
from training.train import train

DAYS = {"train": [200, 121], "valid": [101], "test": [50]}  # 63 rows a batch: uneven shares, and a last batch of 6


COMPOSED = {
    "interaction": {"name": "cross", "layers": 1, "rank": 4},
    "tables": {"name": "mixed_dim", "alpha": 0.5, "threshold": 3},
    "loss": {"name": "focal", "gamma": 1, "alpha": 0.5},
}


@pytest.mark.parametrize(("parts", "tables"), [({}, "sgd"), ({}, "rowwise_adagrad"), (COMPOSED, "rowwise_adagrad")])
def test_two_ranks_learn_what_one_does(tmp_path: Path, capfd: pytest.CaptureFixture[str], parts: dict[str, Any], tables: str) -> None:
    """The same global batches, so the same steps up to rounding, the tables' included; the curves too."""
    results = []
    for devices in (1, 2):
        root = tmp_path / str(devices)
        write_features(root, DAYS)
        optimizers = {"dense_optimizer": {"name": "sgd", "lr": 0.1}, "table_optimizer": {"name": tables, "lr": 0.1}}
        train(make_params(parts, devices=devices, batch_size=63, epochs=2, **optimizers), root)
        model = root / "artifacts/model"
        curves = polars.read_csv(model / "history.csv")
        results.append((load_file(model / "weights.safetensors"), curves))
        out = capfd.readouterr().out
        assert out.count("train     100 %  642 rows") == 1  # only the first rank speaks
        assert all(line.startswith(("train ", "valid ")) for line in out.splitlines()), out
    (one, curves_one), (two, curves_two) = results
    assert one.keys() == two.keys()
    for name, weights in one.items():
        np.testing.assert_allclose(two[name], weights, rtol=1e-5, atol=1e-5, err_msg=name)
    polars.testing.assert_frame_equal(curves_two, curves_one, check_exact=False, abs_tol=1e-5)


def test_an_error_on_the_ranks_is_one_error_here(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    with pytest.raises(ConfigError, match=r"^training diverged: .* at step \d+ of 6, .*train.dense_optimizer.lr 1e\+30"):
        train(make_params(devices=2, dense_optimizer={"name": "sgd", "lr": 1e30}), tmp_path)
    assert not (tmp_path / "artifacts/model").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_killed_run_leaves_no_rank_behind(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    code = "import sys; from pathlib import Path; from features.params import Params; from training.train import train;"
    code += "train(Params.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
    params = make_params(devices=2, epochs=100_000).model_dump_json(by_alias=True)
    run = subprocess.Popen([sys.executable, "-c", code, params, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert run.stdout
    assert "2 ranks on cpu" in run.stdout.readline()
    assert run.stdout.readline().startswith("train ")  # from the first rank
    family = psutil.Process(run.pid).children(recursive=True)
    assert len(family) >= 3  # torchrun and its two ranks
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    alive = still_running(family, within_s=20)
    for process in alive:
        process.kill()
    assert not alive
