"""A training run with each interaction, kind of tables and loss.

The model learns, and the loaded bundle has the validation loss of the run.
"""

import csv
from pathlib import Path
from typing import Any

import pytest
from torch.nn.functional import binary_cross_entropy_with_logits

from common.artifact import Artifact
from common.layout import FEATURES
from tests.factories.features import CARDINALITY, training_params, write_features
from training.inference.bundle import load_bundle
from training.loop.batches import Batches
from training.stage import train

DAYS = {"train": [400, 300], "valid": [200], "test": [50]}
QR = {"name": "quotient_remainder", "collisions": 4, "threshold": CARDINALITY - 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "cat": {"interaction": {"name": "cat"}},
    "cross": {"interaction": {"name": "cross", "layers": 2, "rank": None}},
    "cross of low rank": {"interaction": {"name": "cross", "layers": 2, "rank": 8}},
    "mult": {"tables": QR | {"operation": "mult"}},
    "add": {"tables": QR | {"operation": "add"}},
    "concat": {"tables": QR | {"operation": "concat"}},
    "mixed_dim": {"tables": {"name": "mixed_dim", "alpha": 1, "threshold": 3}},
    "per_column": {
        "tables": {"name": "per_column", "dims": {f"C{k}": 2 for k in range(1, 26)} | {"C26": 0}}
    },
    "weighted": {"loss": {"name": "bce", "positive_weight": 2, "label_smoothing": 0.1}},
    "focal": {"loss": {"name": "focal", "gamma": 2, "alpha": 0.5}},
}
# a column has 12 values: three quotients and four remainders
ROWS_PER_COLUMN = {"mult": 3 + 4, "add": 3 + 4, "concat": 3 + 4}
# the embedding dim is 4; concat halves it, and mixed_dim has 4 (12 / 3)^-1 = 1
DIM = {"concat": 2, "mixed_dim": 1, "per_column": 2}
LEFT_OUT = {"per_column": 1}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_run_of_each_variant(tmp_path: Path, name: str) -> None:
    schema = write_features(tmp_path, DAYS)
    rates = {
        "dense_optimizer": {"name": "adam", "lr": 0.01},
        "embedding_optimizer": {"name": "rowwise_adagrad", "lr": 0.1},
    }
    train(training_params(VARIANTS[name], epochs=3, **rates), tmp_path)
    with (tmp_path / "artifacts/model/history.csv").open() as file:
        points = list(csv.DictReader(file))
    losses = {
        split: [float(point["loss"]) for point in points if point["split"] == split]
        for split in ("train", "valid")
    }
    assert min(losses["valid"]) < 0.6
    # at the start of the training; the curves have the logloss, also if another loss is minimised
    assert 0.6 < losses["train"][0] < 0.9

    model = load_bundle(tmp_path / "artifacts/model").model
    assert [tuple(tables.weight.shape) for tables in model.embeddings.tables] == [
        (
            (len(schema.categorical) - LEFT_OUT.get(name, 0))
            * ROWS_PER_COLUMN.get(name, CARDINALITY),
            DIM.get(name, 4),
        )
    ]
    files = Artifact.open(tmp_path / FEATURES).paths_in("valid")
    ((rows, _),) = Batches(files, schema, batch_size=200).steps(0, 1)
    found = binary_cross_entropy_with_logits(model(rows.dense, rows.ids), rows.labels).item()
    assert found == pytest.approx(min(losses["valid"]), abs=2e-6)


def test_training_minimises_the_loss_of_the_parameters(tmp_path: Path) -> None:
    """A step in which clicked rows count 99 times as much raises the bias of the last layer.

    Half of all rows are clicked, so a step with the plain loss hardly changes this bias.
    """
    biases = []
    for name, loss in (
        ("plain", {}),
        ("weighted clicks", {"loss": {"name": "focal", "gamma": 0, "alpha": 0.99}}),
    ):
        write_features(tmp_path / name, DAYS)
        rates = {
            "dense_optimizer": {"name": "sgd", "lr": 1e-3},
            "embedding_optimizer": {"name": "sgd", "lr": 1e-3},
        }
        train(training_params(loss, batch_size=700, **rates), tmp_path / name)
        biases.append(load_bundle(tmp_path / name / "artifacts/model").model.top[-1].bias.item())
    assert biases[1] - biases[0] > 1e-4


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    params = training_params(
        VARIANTS["mixed_dim"] | VARIANTS["cross of low rank"] | VARIANTS["focal"]
    )
    weights = []
    for name in ("one", "two"):
        write_features(tmp_path / name, DAYS)
        train(params, tmp_path / name)
        weights.append((tmp_path / name / "artifacts/model/weights.safetensors").read_bytes())
    assert weights[0] == weights[1]
