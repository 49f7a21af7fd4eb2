"""A rank whose training has ended does not fail any more."""

from pathlib import Path

import pytest

from tests.factories.features import training_params, write_features
from tests.factories.support import ROOT
from training.launch import launcher
from training.stage import train

pytestmark = pytest.mark.slow


def test_a_library_that_aborts_at_pythons_shutdown_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_features(tmp_path, {"train": [200, 121], "valid": [101], "test": [50]})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(launcher, "WORKER_MODULE", "tests.fault.aborting_worker")
    train(training_params(devices=2, parallel="data"), tmp_path)
    assert (tmp_path / "artifacts/model/bundle.json").exists()
