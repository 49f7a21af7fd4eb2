from pathlib import Path

import pytest
import torch

from tests.factories.features import training_params, write_features
from training.inference.bundle import load_bundle
from training.loop.embedding_reset import reset_embeddings
from training.models.embedding_tables import EmbeddingTables
from training.optim.embedding_optimizers import RowwiseAdagrad
from training.stage import train


def test_tables_and_their_optimizers_begin_again_with_each_epoch() -> None:
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


@pytest.mark.parametrize("again", [False, True])
def test_rows_seen_twice_are_not_learned_by_heart(tmp_path: Path, again: bool) -> None:
    """With frozen dense layers a second epoch ends as the first did; without a reset it does not."""
    weights = []
    for epochs in (1, 2):
        root = tmp_path / str(epochs)
        write_features(root, {"train": [100], "valid": [50], "test": [50]})
        frozen = {"name": "sgd", "lr": 1e-30}
        train(
            training_params(
                epochs=epochs,
                reset_embeddings_each_epoch=again,
                dense_optimizer=frozen,
                shuffle_rows=0,
                validations=1,
            ),
            root,
        )
        weights.append(load_bundle(root / "artifacts/model").model.embeddings.tables[0].weight)
    assert torch.equal(*weights) == again
