"""The embedding reset: each epoch begins with the initial embedding tables."""

from pathlib import Path

import pytest
import torch

from tests.factories.features import training_params, write_features
from training.inference.bundle import load_bundle
from training.loop.embedding_reset import reset_embeddings
from training.models.embedding_tables import EmbeddingTables
from training.optim.embedding_optimizers import RowwiseAdagrad
from training.stage import train


def test_a_reset_restores_the_initial_tables_and_optimizers() -> None:
    tables = EmbeddingTables([4, 9], 3, torch.Generator().manual_seed(1))
    optimizer = RowwiseAdagrad(tables)
    first = tables.weight.clone()
    for _ in range(2):
        optimizer.step(tables, torch.tensor([[1, 2]]), torch.ones(1, 2, 3), 0.1)
        assert not torch.equal(tables.weight, first)
        assert optimizer.sums.any()
        reset_embeddings([tables], [optimizer])
        assert torch.equal(tables.weight, first)
        assert not optimizer.sums.any()


@pytest.mark.parametrize("reset", [False, True])
def test_with_a_reset_the_second_epoch_learns_the_same_tables(tmp_path: Path, reset: bool) -> None:
    """The dense layers are frozen, so only the tables can differ after the second epoch."""
    weights = []
    for epochs in (1, 2):
        root = tmp_path / str(epochs)
        write_features(root, {"train": [100], "valid": [50], "test": [50]})
        frozen = {"name": "sgd", "lr": 1e-30}
        train(
            training_params(
                epochs=epochs,
                reset_embeddings_each_epoch=reset,
                dense_optimizer=frozen,
                shuffle_rows=0,
                validations=1,
            ),
            root,
        )
        weights.append(load_bundle(root / "artifacts/model").model.embeddings.tables[0].weight)
    assert torch.equal(*weights) == reset
