"""The files about a diverged run, which help to find the cause."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file

from common.files import replaced
from features.schema.schema import Schema
from training.loop.batches import Rows
from training.loop.datamodule import FeatureData
from training.loop.diverged import DIVERGED, Diverged


class DivergenceDump(pl.Callback):
    """Writes the rows of the step that diverged and the state of the run below root/runs/diverged.

    batch.safetensors has the rows of all ranks: dense, ids, labels, `weights` if there are sample
    weights, `teacher_scores` if there are teachers, and FEATURE.values, FEATURE.starts,
    FEATURE.weights of each feature with lists.
    state.safetensors has the weights and the optimizer's state when the divergence was found:
    before the step where each loss is checked (on a single CPU), else at the next point of the
    training curve.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the files on the first rank; the others wait for it."""
        if not isinstance(exception, Diverged):
            return
        if trainer.is_global_zero:
            data = trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(data, FeatureData)
            with replaced(self.root / DIVERGED) as scratch:
                scratch.mkdir()
                rows = data.batch_of_step(exception.step - 1).rows
                save_file(tensors_of(rows, data.schema), scratch / "batch.safetensors")
                metadata = {"step": str(trainer.global_step)}
                save_file(_state(pl_module), scratch / "state.safetensors", metadata)
        trainer.strategy.barrier("diverged")


def tensors_of(rows: Rows, schema: Schema) -> dict[str, torch.Tensor]:
    """Return the tensors of rows by name."""
    names = ("dense", "ids", "labels", "weights", "teacher_scores")
    tensors = {name: getattr(rows, name) for name in names}
    for feature, bag in zip(schema.list_features, rows.bags, strict=True):
        tensors |= {f"{feature.name}.{name}": tensor for name, tensor in bag._asdict().items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _state(module: pl.LightningModule) -> dict[str, torch.Tensor]:
    optimizer = module.optimizers(use_pl_optimizer=False)
    assert isinstance(optimizer, torch.optim.Optimizer)
    states: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    tensors = {
        f"optimizer.{k}.{name}": value
        for k, values in states.items()
        for name, value in values.items()
    }
    # By address: the averaged model shares the embedding tables, which safetensors refuses. The
    # first name of a tensor remains.
    by_address = {
        value.data_ptr(): (name, value) for name, value in reversed(module.state_dict().items())
    }
    tensors |= dict(by_address.values())
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
