"""The train stage: features to a model bundle, on one device in this process, on several by torchrun."""

import importlib.util
import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy, Strategy

from common.bundle_layout import HISTORY, MODEL
from common.config.loading import ConfigError
from common.config.params import Params, Train
from common.files import DataError, read_json, replaced
from common.logs import get_logger
from common.progress import Progress
from features.encode.feature_state import FeatureState
from features.dataset.stage import FEATURES
from features.schema.check_params import check_frequency_bucket_column
from training.distributed.device import Accelerator, check_precision, pick_accelerator
from training.distributed.launcher import apply_environment, fit_on_ranks
from training.distributed.sharding.placement_report import (
    PLACEMENT_FILE,
    TablePlacement,
    format_placement,
    data_parallel_placement,
    write_placement,
)
from training.inference.bundle import save_bundle
from training.kernels.compiler import why_not_compiled
from training.kernels.memory_hints import keep_memory
from training.loop.batches import Batches
from training.loop.checkpoint import LAST, Checkpoints, Keeper, checkpoints_of
from training.loop.datamodule import FeatureData
from training.loop.interrupt import told_when_stopped
from training.loop.lightning_module import TrainDLRM
from training.loop.losses import make_loss
from training.loop.profiler import ProfileSteps
from training.loop.schedule import Plan, check_schedule
from training.loop.training_curves import write_history
from training.loop.warm_start import Start
from training.models.embedding_tables import EmbeddingTables
from training.models.factory import build_model, composes, groups_of
from training.models.mlp import set_precision

log = get_logger("train")

COLLECTIVE_TIMEOUT = timedelta(minutes=2)  # a frozen rank ends the run after this


def train(params: Params, root: Path) -> None:
    """root/artifacts/features to root/artifacts/model, the bundle of the weights with the lowest validation loss.

    Raises DataError for features that nothing can be learned from, ConfigError for parameters that do not fit the machine or diverge.
    """
    params = apply_environment(params)
    check_features(root / FEATURES)
    accelerator = pick_accelerator(params.train)
    check_precision(params.train, accelerator)
    check_parallel(params.train)
    check_start(params.train, root)
    checkpoints = checkpoints_of(params, accelerator, root)
    with told_when_stopped(checkpoints):
        if params.train.num_ranks == 1:
            fit(params, root, accelerator, checkpoints)
        else:
            fit_on_ranks(params, root, accelerator, checkpoints)
    checkpoints.remove()


def fit(params: Params, root: Path, accelerator: Accelerator, checkpoints: Checkpoints) -> None:
    """Train in this process, which is the only one or one of torchrun's; the first rank alone writes.

    A run that was killed is gone on with: it ends with the bytes that it would have ended with.
    """
    quiet_lightning()
    keep_memory()
    state = FeatureState.load(root / FEATURES / "state")
    check_frequency_bucket_column(
        params.evaluate.frequency_bucket_column, state.schema.categorical_features
    )  # whose features these are: perhaps not params.yaml's
    generator = torch.Generator().manual_seed(params.train.seed)
    strategy = make_strategy(params, state.cardinalities, accelerator)
    make_tables = getattr(strategy, "make_tables", EmbeddingTables)
    model = build_model(
        params.model, state.cardinalities, len(state.schema.dense_features), generator, make_tables
    )
    set_precision(model, params.train.precision)
    data = FeatureData(root / FEATURES, state.schema, params.train)
    batches = data.batches()
    if (
        start := Start(root / params.train.warm_start_from, params.model, state)
        if params.train.warm_start_from
        else None
    ):
        start.into(model)
    elif params.model.standardise:
        model.standardise.fit(batches.some_dense())
    plan = Plan.make(params.train.epochs, batches.steps_per_epoch, params.train.validations)
    check_schedule(params.train, plan)
    module = TrainDLRM(model, make_loss(params.model.loss), params.train, plan, root)
    module.start = start
    if (saved := checkpoints.read(LAST)) is not None:
        module.go_on_from(saved, checkpoints.tables_of(saved))
        if first_rank() and any(point.split == "valid" for point in module.history):
            checkpoints.check_best(module.best.step)
    data.start_at(module.step, plan)
    plan_of_tables = tables_plan(params, strategy, state)
    if first_rank():
        for line in format_placement(plan_of_tables) if plan_of_tables else []:
            log.info(f"{line}")
        tell(params, state, accelerator, module, checkpoints, batches)
        module.progress = Progress(
            "train", params.train.epochs * batches.num_rows, root, batches.rows_before(module.step)
        )
    with module.progress or nullcontext():
        if not module.done:
            callbacks: list[pl.Callback] = [
                Keeper(checkpoints, every_s=60 * params.train.checkpoint_minutes)
            ]
            if params.train.profile and first_rank():
                callbacks.append(ProfileSteps(root))
            make_trainer(
                params.train,
                root,
                accelerator,
                plan.validations_after(module.step),
                callbacks,
                strategy,
            ).fit(module, data)
    if first_rank():
        if module.sharded:
            model = build_model(
                params.model, state.cardinalities, len(state.schema.dense_features), generator
            )
        checkpoints.load_best(model, module.best.step)
        with replaced(root / MODEL) as scratch:
            scratch.mkdir()
            write_history(scratch / HISTORY, module.history)
            if plan_of_tables:
                write_placement(scratch / PLACEMENT_FILE, plan_of_tables)
            save_bundle(scratch, model, root / FEATURES / "state", params, root)


def tell(
    params: Params,
    state: FeatureState,
    accelerator: Accelerator,
    module: TrainDLRM,
    checkpoints: Checkpoints,
    batches: Batches,
) -> None:
    """What may surprise."""
    tables = params.model.tables
    if accelerator == "cpu" and (reason := why_not_compiled()):
        log.info(f"{reason}")
    if tables.name != "full" and not composes(tables, state.cardinalities):
        log.info(
            f"no column has more than model.tables.threshold values, {tables.threshold:,}: full tables"
        )
    if (params.train.last_days or 0) > len(batches.files):
        log.info(
            f"train.last_days is {params.train.last_days}, and there are {len(batches.files)} training days: all of them"
        )
    if batches.num_rows < batches.batch_size:
        takes = (
            f"it takes {batches.batch_size:,} rows (train.batch_size times accumulate_grad_batches)"
        )
        log.info(f"one step an epoch: {takes}, and there are {batches.num_rows:,}")
    for other in [path for path in checkpoints.of_others() if (path / LAST).exists()]:
        log.info(
            f"{other} is of another run, which did not end; with all as it was then, it would go on"
        )
    if module.start:
        log.info(f"starts from model {module.start.version}")
    if module.step:
        log.info(
            f"goes on at step {module.step:,} of {module.plan.num_steps:,}, saved in {checkpoints.directory}"
        )


def make_strategy(
    params: Params, cardinalities: Sequence[int], accelerator: Accelerator
) -> Strategy | Literal["auto"]:
    """One device: Lightning's own. Several: DDP, which replicates all, or what spreads the tables as train.parallel says."""
    if params.train.num_ranks == 1:
        return "auto"
    if params.train.parallel == "data":
        return DDPStrategy(timeout=COLLECTIVE_TIMEOUT, broadcast_buffers=False)
    from training.distributed.sharding.strategy import (
        HybridStrategy,  # here alone: TorchRec takes seconds to import, and may not be there
    )

    return HybridStrategy.for_model(
        params.model, params.train, cardinalities, accelerator, COLLECTIVE_TIMEOUT
    )


def tables_plan(
    params: Params, strategy: Strategy | Literal["auto"], state: FeatureState
) -> list[TablePlacement]:
    """Which rank has how much of each table, named after its column where each column has one; nothing of one device."""
    columns, num_ranks = state.schema.categorical_features, params.train.num_ranks
    if num_ranks == 1:
        return []
    groups = groups_of(params.model, state.cardinalities)
    lines: list[TablePlacement] = getattr(strategy, "placement", None) or data_parallel_placement(
        groups, params.train.embedding_optimizer.name, num_ranks
    )
    return (
        [line._replace(table=column) for line, column in zip(lines, columns, strict=True)]
        if len(lines) == len(columns)
        else lines
    )


def make_trainer(
    params: Train,
    root: Path,
    accelerator: Accelerator,
    num_stretches: int,
    callbacks: list[pl.Callback],
    strategy: Strategy | Literal["auto"] = "auto",
) -> pl.Trainer:
    """Lightning without what this project does itself: progress, checkpoints, sampling. GPUs are asked for their deterministic kernels;
    those used on CPU are deterministic as they are. num_stretches: of steps, each with a validation behind it (training/loop/datamodule.py)."""
    return pl.Trainer(
        accelerator=accelerator,
        devices=params.devices,
        num_nodes=params.nodes,
        strategy=strategy,
        deterministic="warn" if accelerator == "gpu" else None,
        max_epochs=num_stretches,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=make_logger(params.logger, root),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )


def make_logger(name: str, root: Path) -> TensorBoardLogger | CSVLogger | Literal[False]:
    """Lightning's own, writing below root/runs."""
    if name == "none":
        return False
    return (
        TensorBoardLogger(root / "runs", name=name)
        if name == "tensorboard"
        else CSVLogger(root / "runs", name=name)
    )


def check_features(directory: Path) -> None:
    """Enough to learn from and to choose by. Raises DataError."""
    splits = read_json(directory / "data.json")["splits"]
    for split in ("train", "valid"):
        if not splits[split]["num_rows"]:
            raise DataError(
                f"{directory / split}: no rows; give a longer log, change data.days or features.split.{split}_days in params.yaml"
            )
    label_rate = splits["train"]["label_rate"]
    if label_rate in (0, 1):
        raise DataError(
            f"{directory / 'train'}: every label is {label_rate:.0f}, so there is nothing to tell apart;"
            " check the label column of data.source, or give a longer log"
        )


def check_parallel(params: Train) -> None:
    """Raises ConfigError where tables are to be sharded and TorchRec is not there."""
    if (
        params.num_ranks > 1
        and params.parallel != "data"
        and not importlib.util.find_spec("torchrec")
    ):
        raise ConfigError(
            f"params.yaml: train.parallel is {params.parallel}, but TorchRec is not installed; run make setup again"
            " (requirements/train.txt has it), or set train.parallel to data"
        )


def check_start(params: Train, root: Path) -> None:
    """Raises ConfigError where a run would go on from what it is to replace: made again, it would not come out the same."""
    if (
        params.warm_start_from
        and (root / params.warm_start_from).resolve() == (root / MODEL).resolve()
    ):
        raise ConfigError(
            f"params.yaml: train.warm_start_from is {params.warm_start_from}, which this stage replaces; copy it, to runs/models/VERSION"
        )


def first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def quiet_lightning() -> None:
    """Its remarks on loaders, devices and products are not for the reader of a log; errors stay."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning|torch\.distributed")
