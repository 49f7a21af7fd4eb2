"""Standardisation of the dense features, compared with NumPy and in a training run."""

from pathlib import Path

import numpy as np
import torch

from common.artifact import Artifact
from common.layout import FEATURES
from tests.factories.features import training_params, write_features
from training.inference.bundle import load_bundle
from training.loop.batches import Batches
from training.models.standardise import Standardise
from training.stage import train


def test_fit_equals_numpy_and_leaves_a_constant_column() -> None:
    rows = np.random.default_rng(1).normal(3, 7, size=(50, 3)).astype(np.float32)
    rows[:, 1] = 0.1
    standardise = Standardise(3)
    assert torch.equal(standardise(torch.from_numpy(rows)), torch.from_numpy(rows))
    standardise.fit(torch.from_numpy(rows))
    found = standardise(torch.from_numpy(rows)).numpy()
    varying = rows[:, [0, 2]]
    expected = (varying - varying.mean(0)) / varying.std(0)
    np.testing.assert_allclose(found[:, [0, 2]], expected, rtol=1e-4, atol=1e-5)
    assert not found[:, 1].any()


def test_a_bundle_has_the_mean_of_training_rows(tmp_path: Path) -> None:
    """The mean is that of the first row group of each training file, and of no other rows."""
    schema = write_features(tmp_path, {"train": [120, 30], "valid": [50], "test": [50]})
    train(training_params({"standardise": True}), tmp_path)
    batches = Batches(Artifact.open(tmp_path / FEATURES).paths_in("train"), schema, batch_size=150)
    ((rows, _),) = batches.steps(0, 1)
    some = torch.cat([rows.dense[:50], rows.dense[120:]]).double()
    standardise = load_bundle(tmp_path / "artifacts/model").model.standardise
    torch.testing.assert_close(standardise.mean, some.mean(0).float())
    torch.testing.assert_close(standardise.std, some.std(0, correction=0).float())
