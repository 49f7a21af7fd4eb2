"""Dims per column that `clickmill tune dims` finds, beside uniform tables and `mixed_dim`.

The features must be in a project folder, which is given; nothing is written there but the result of
the search. Every model is trained with several seeds, and the test rows are scored with the weights
of its last step. One thread.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from common.config.loading import check
from common.config.model import Model
from common.config.params import Params, load_params
from training.loop.batches import Batches
from training.loop.checkpoint import Checkpoints
from training.loop.losses import logloss
from training.stage import TrainingRun, prepare
from training.tune.dims import search_dims

MIXED_DIM = {"name": "mixed_dim", "alpha": 0.3, "threshold": 200}
BATCH_ROWS = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "project", type=Path, help="a folder with params.yaml and artifacts/features"
    )
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bottom-mlp", type=int, nargs="*", default=[64])
    parser.add_argument("--top-mlp", type=int, nargs="*", default=[128, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    widths = {"bottom_mlp": arguments.bottom_mlp, "top_mlp": arguments.top_mlp}
    params = with_values(load_params(arguments.project / "params.yaml"), widths)
    found = search_dims(params, arguments.project, arguments.budget, 1)
    dim = params.model.embedding_dim
    models = {
        f"uniform {dim}": {},
        "uniform of the budget": {"embedding_dim": int(arguments.budget * dim)},
        "mixed_dim, alpha 0.3": {"tables": MIXED_DIM},
        "searched": {"tables": found["tables"]},
    }
    print(f"| model | table numbers | test logloss, seeds 1 to {arguments.seeds} | mean |")
    print("|---|---|---|---|")
    for name, values in models.items():
        runs = [
            train(with_values(params, values, seed), arguments.project)
            for seed in range(1, arguments.seeds + 1)
        ]
        losses = [test_logloss(run) for run in runs]
        tables = runs[0].module.model.embeddings.tables
        numbers = sum(each.num_parameters for each in tables)
        shown = " ".join(f"{loss:.5f}" for loss in losses)
        print(f"| {name} | {numbers:,} | {shown} | {statistics.fmean(losses):.5f} |", flush=True)


def with_values(params: Params, model: dict[str, Any], seed: int = 1) -> Params:
    """Return parameters with other values of the section `model`, for one thread."""
    values = params.model.model_dump() | model
    train = {"seed": seed, "threads": 1, "accelerator": "cpu", "logger": "none"}
    return params.model_copy(
        update={
            "model": check(Model, values, Path("params.yaml")),
            "train": params.train.model_copy(update=train),
        }
    )


def train(params: Params, root: Path) -> TrainingRun:
    """Train a model, without checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(params, root, "cpu", Checkpoints(Path(folder)))
        run.make_trainer(logger=False).fit(run.module, datamodule=run.data)
    return run


@torch.inference_mode()
def test_logloss(run: TrainingRun) -> float:
    """Return the logloss of the test rows with the weights of the last step."""
    model = run.module.exported_model.eval()
    batches = Batches(run.features.paths_in("test"), run.state.schema, batch_size=BATCH_ROWS)
    loss_sum = 0.0
    for batch in batches.steps(0, batches.steps_per_epoch):
        rows = batch.rows
        loss_sum += logloss(model(rows.dense, rows.ids, rows.bags), rows.labels).item()
    return loss_sum / batches.num_rows


if __name__ == "__main__":
    main()
