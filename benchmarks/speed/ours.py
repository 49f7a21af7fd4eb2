"""The contenders of clickmill; no other file of this benchmark imports its training code."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from speed.rounds import Windows
from speed.work import BOTTOM_MLP, LR, TOP_MLP, Work

from common.artifact import Artifact
from common.config.model import Dot, Full
from common.config.params import DenseOptimizer, EmbeddingOptimizer, Train, load_params
from training.bench.step import Step
from training.kernels.choice import Precision, bf16_supported
from training.kernels.memory_hints import keep_memory
from training.loop.batches import Batch, Batches
from training.loop.datamodule import FeatureData
from training.loop.lightning_module import TrainDLRM
from training.loop.losses import logloss
from training.loop.schedule import Schedule
from training.models.dlrm import DLRM
from training.models.factory import build_model
from training.models.mlp import set_precision
from training.stage import make_trainer, quiet_lightning

PASSES = 1000  # more than are ever run: the parent ends the process
PRECISIONS: tuple[Precision, ...] = (
    ("fp32", "bf16") if torch.cuda.is_available() or bf16_supported() else ("fp32",)
)


def step(work: Work, windows: Windows, precision: Precision) -> None:
    """Train the model with both optimizers on batches made before, without Lightning."""
    train_on = Step(make_model(work, precision), logloss, make_params(work, precision))
    for rows, _ in RepeatedBatches(work):
        train_on(rows)
        windows.tick()


def step_without_compiler(work: Work, windows: Windows) -> None:
    """Do the same as `step` where there is no C++ compiler."""
    os.environ["CXX"] = "no-compiler"
    step(work, windows, "fp32")


def lightning_step(work: Work, windows: Windows, precision: Precision) -> None:
    """Do the same as `step` through Lightning, with the Trainer of the train stage."""
    fit(work, windows, precision, RepeatedBatches(work))


def loop(work: Work, windows: Windows, precision: Precision) -> None:
    """Run the train stage's whole loop: Parquet -> pools of shuffled rows -> Lightning -> step.

    A window is an epoch, so that all reading counts.
    """
    data = FeatureData(Artifact.open(Path(work.root)), work.schema, make_params(work, precision))
    windows.be_a_pass(data.train_batches().steps_per_epoch)
    fit(work, windows, precision, data)


def loader(work: Work, windows: Windows) -> None:
    """Read Parquet into batches, whole epochs, without training on them."""
    features, params = Artifact.open(Path(work.root)), make_params(work, PRECISIONS[0])
    data = FeatureData(features, work.schema, params)
    batches = data.train_batches()
    windows.be_a_pass(batches.steps_per_epoch)
    for _ in batches.steps(0, PASSES * batches.steps_per_epoch):
        windows.tick()


def fit(
    work: Work, windows: Windows, precision: Precision, data: "FeatureData | RepeatedBatches"
) -> None:
    """Train with the Trainer of the train stage, without validations."""
    quiet_lightning()
    keep_memory()
    params = make_params(work, precision)
    schedule = Schedule.make(1, PASSES * windows.num_steps, params.validations)
    module = TrainDLRM(make_model(work, precision), logloss, params, schedule)
    trainer = make_trainer(
        params,
        Path(work.root),
        "gpu" if work.device == "cuda" else "cpu",
        schedule,
        callbacks=[CountSteps(windows)],
        limit_val_batches=0,
    )
    trainer.fit(module, data)


class CountSteps(pl.Callback):
    """Reports each step to the benchmark."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def on_train_batch_end(self, *_: Any) -> None:
        """Count a step."""
        self.windows.tick()


class RepeatedBatches:
    """The first rows in file order, as batches that are made once and repeated."""

    def __init__(self, work: Work) -> None:
        files = Artifact.open(Path(work.root)).paths_in("train")
        file_order = Batches(files, work.schema, batch_size=work.batch_size)
        self.batches = [
            batch.to(torch.device(work.device)) for batch in file_order.steps(0, work.window_steps)
        ]

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(PASSES):
            yield from self.batches

    def __len__(self) -> int:
        return PASSES * len(self.batches)


def make_params(work: Work, precision: Precision) -> Train:
    """Return the shipped train section, reduced to what the reference does."""
    sgd: dict[str, Any] = {
        "dense_optimizer": DenseOptimizer(name="sgd", lr=LR),
        "embedding_optimizer": EmbeddingOptimizer(name="sgd", lr=LR),
    }
    changes = {
        "batch_size": work.batch_size,
        "epochs": PASSES,
        "validations": 1,
        "reset_embeddings_each_epoch": False,
        "weight_averaging": False,
        **sgd,
    }
    return load_params().train.model_copy(update=changes | {"precision": precision})


def make_model(work: Work, precision: Precision) -> DLRM:
    """Make the model of the benchmark."""
    with torch.device(work.device):
        generator = torch.Generator(work.device).manual_seed(0)
        widths = {
            "embedding_dim": work.dim,
            "bottom_mlp": list(BOTTOM_MLP),
            "top_mlp": list(TOP_MLP),
        }
        params = load_params().model.model_copy(
            update=widths | {"interaction": Dot(name="dot"), "tables": Full(name="full")}
        )
        model = build_model(params, work.cardinalities, len(work.schema.dense_features), generator)
        set_precision(model, precision)
        return model
