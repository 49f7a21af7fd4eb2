import csv
from pathlib import Path

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from features.files import DataError, read_json
from features.params import ConfigError
from tests.small_features import make_params, write_features
from training.batches import Batches
from training.bundle import load_bundle
from training.optim.schedule import lr_factor
from training.train import train

DAYS = {"train": [400, 300], "valid": [200], "test": [50]}


def history(root: Path) -> list[dict[str, str]]:
    with (root / "artifacts/model/history.csv").open() as file:
        return list(csv.DictReader(file))


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_run_learns_and_keeps_its_best_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Rates so high that the validation loss turns: the bundle holds the best weights, not the last."""
    schema = write_features(tmp_path, DAYS)
    train(make_params(epochs=8, dense_optimizer={"name": "adam", "lr": 0.05}, validations=15), tmp_path)
    points = history(tmp_path)
    valid = [float(point["loss"]) for point in points if point["split"] == "valid"]
    assert [int(point["step"]) for point in points] == sorted(int(point["step"]) for point in points)
    assert points[-1]["split"] == "valid"
    assert int(points[-1]["step"]) == 8 * 11
    assert min(valid) < 0.6 < valid[-1]

    model = load_bundle(tmp_path / "artifacts/model").model
    directory = tmp_path / "artifacts/features/valid"
    ((rows, _),) = Batches(directory, schema, batch_size=200, shuffle_rows=0, seed=(), rank=0, world_size=1)
    assert binary_cross_entropy_with_logits(model(rows.dense, rows.ids), rows.labels).item() == pytest.approx(min(valid), abs=2e-6)

    out, err = capfd.readouterr()
    assert f"valid  step 88  loss {valid[-1]:.4f}  accuracy " in out
    assert "train     100 %  5,600 rows" in out
    assert all(line.startswith(("train ", "valid ")) for line in out.splitlines())
    assert err == ""
    assert read_json(tmp_path / "runs/timings/train.json")["num_rows"] == 8 * 700
    assert list((tmp_path / "runs/tensorboard").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("dense", ["sgd", "adagrad", "adam"])
@pytest.mark.parametrize("tables", ["sgd", "rowwise_adagrad"])
def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, dense: str, tables: str) -> None:
    params = make_params(dense_optimizer={"name": dense, "lr": 0.01}, table_optimizer={"name": tables, "lr": 0.1})
    bundles = []
    for name in ("one", "two"):
        write_features(tmp_path / name, DAYS)
        train(params, tmp_path / name)
        bundles.append(files(tmp_path / name / "artifacts/model"))
    assert bundles[0] == bundles[1]
    write_features(tmp_path / "other", DAYS)
    train(make_params(seed=2, dense_optimizer={"name": dense, "lr": 0.01}), tmp_path / "other")
    assert files(tmp_path / "other/artifacts/model")["weights.safetensors"] != bundles[0]["weights.safetensors"]


def test_divergence_names_step_and_rates_and_leaves_no_model(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    with pytest.raises(ConfigError, match=r"train loss (nan|inf) at step \d+ of 11, .*train.dense_optimizer.lr 1e\+38.*warmup_steps"):
        train(make_params(dense_optimizer={"name": "sgd", "lr": 1e38}), tmp_path)
    assert not (tmp_path / "artifacts/model").exists()


def test_inputs_that_nothing_can_be_learned_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.json not found; run the stage"):
        train(make_params(), tmp_path)
    for split in ("train", "valid"):
        write_features(tmp_path / split, DAYS | {split: []})
        with pytest.raises(DataError, match=rf"artifacts/features/{split}: no rows; .*data.days"):
            train(make_params(), tmp_path / split)


@pytest.mark.parametrize(("seed", "label"), [(0, 0), (3, 1)])
def test_one_class_is_refused(tmp_path: Path, seed: int, label: int) -> None:
    """One training row, whose label is the class."""
    write_features(tmp_path, DAYS | {"train": [1]}, seed)
    with pytest.raises(DataError, match=f"every label is {label}, .*data.source"):
        train(make_params(), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    write_features(tmp_path, DAYS)
    with pytest.raises(ConfigError, match=r"train.devices is 1, but there are 0 GPUs here; .*train.accelerator"):
        train(make_params(accelerator="gpu"), tmp_path)


def test_learning_rate_schedule() -> None:
    """Written out from the policy: first step 1/N, then constant, then ((D - (s - start)) / D)^2."""
    params = make_params(warmup_steps=4, decay_steps=2).train
    assert [lr_factor(step, 8, params) for step in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.25]
    assert lr_factor(0, 8, make_params().train) == lr_factor(7, 8, make_params().train) == 1


def test_the_schedule_reaches_both_optimizers(tmp_path: Path) -> None:
    """With a warm-up far longer than the run, next to nothing is learned; without the table's rate, its rows would move."""
    write_features(tmp_path, DAYS)
    train(make_params(warmup_steps=10**9, table_optimizer={"name": "rowwise_adagrad", "lr": 0.5}), tmp_path)
    losses = [float(point["loss"]) for point in history(tmp_path) if point["split"] == "valid"]
    assert max(losses) - min(losses) < 1e-5
