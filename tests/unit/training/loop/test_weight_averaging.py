"""Averaged weights: the average over the steps of an epoch, and the mean over epochs."""

from pathlib import Path

import polars as pl
import pytest
import torch

import training.loop.lightning_module
from common.config.model import Model
from tests.factories.features import training_params, write_features
from tests.factories.support import plain_model
from training.inference.bundle import load_bundle
from training.loop import averaging_callback
from training.loop.weight_averaging import EpochMean, average, averaged_model_of
from training.models.dlrm import DLRM
from training.models.factory import build_model
from training.stage import train


def make_model(seed: int) -> DLRM:
    params = Model.model_validate(plain_model(embedding_dim=4, bottom_mlp=[5], top_mlp=[6]))
    return build_model(params, [7, 3], 2, torch.Generator().manual_seed(seed))


def test_averaged_weights_follow_the_formula() -> None:
    """Three steps have the shares 1, 9/10 and 9/11. Embedding tables are not averaged."""
    model = make_model(1)
    averaged_model = averaged_model_of(model)
    expected = {name: weight.detach().double().clone() for name, weight in model.named_parameters()}
    for step, share in enumerate((1, 9 / 10, 9 / 11)):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(
                    torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
                )
        average(averaged_model, model, step)
        for name, weight in model.named_parameters():
            new = 1 if name.startswith("embeddings.") else share
            expected[name] = (1 - new) * expected[name] + new * weight.detach().double()
    for name, weight in averaged_model.named_parameters():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-6, atol=1e-6)
        assert not weight.requires_grad
    assert any(weight.requires_grad for weight in model.parameters())


def test_the_bundle_has_the_averaged_weights_of_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expected average is computed from the weights after each step of two epochs."""
    passed: list[tuple[int, dict[str, torch.Tensor]]] = []

    def watched(averaged_model: DLRM, model: DLRM, step: int) -> None:
        passed.append(
            (step, {name: weight.detach().clone() for name, weight in model.named_parameters()})
        )
        average(averaged_model, model, step)

    monkeypatch.setattr(averaging_callback, "average", watched)
    write_features(tmp_path, {"train": [150], "valid": [50], "test": [50]})
    train(training_params(epochs=2, batch_size=50, validations=1, weight_averaging=True), tmp_path)
    assert [step for step, _ in passed] == [0, 1, 2, 0, 1, 2]
    kept = load_bundle(tmp_path / "artifacts/model").model
    _, w0, w1, w2 = (weights for _, weights in passed[2:])
    for name, weight in kept.named_parameters():
        expected = (
            w2[name]
            if name.startswith("embeddings.")
            else 2 / 11 * (0.1 * w0[name] + 0.9 * w1[name]) + 9 / 11 * w2[name]
        )
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(w0[name], w2[name], rtol=1e-4)


MIXED = {"name": "mixed_dim", "alpha": 0.5, "threshold": 4}


@pytest.mark.parametrize("tables", [{"name": "full"}, MIXED])
def test_epochs_with_a_reset_are_averaged_and_training_does_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: dict[str, object]
) -> None:
    left: dict[int, list[torch.Tensor]] = {}
    made: dict[int, list[torch.Tensor]] = {}

    class Watched(EpochMean):
        def update(self, averaged_model: DLRM, epoch: int) -> None:
            left[epoch] = [weight.clone() for weight in averaged_model.parameters()]
            super().update(averaged_model, epoch)
            made[epoch] = [weight.clone() for weight in averaged_model.parameters()]

    monkeypatch.setattr(training.loop.lightning_module, "EpochMean", Watched)
    write_features(tmp_path, {"train": [150], "valid": [50], "test": [50]})
    curves = {}
    for averaging in (True, False):
        train(
            training_params(
                {"tables": tables},
                epochs=4,
                batch_size=50,
                validations=4,
                reset_embeddings_each_epoch=True,
                weight_averaging=averaging,
            ),
            tmp_path,
        )
        history = pl.read_csv(tmp_path / "artifacts/model/history.csv")
        curves[averaging] = history.filter(split="train")
    assert curves[True].equals(curves[False])
    assert list(left) == [2, 3, 4]
    for epoch, weights in made.items():
        for k, weight in enumerate(weights):
            expected = torch.stack([left[e][k] for e in range(2, epoch + 1)]).mean(dim=0)
            torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(made[4][0], left[4][0])
