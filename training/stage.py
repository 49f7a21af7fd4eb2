"""The train stage: features to a model bundle, on one device, or on several by torchrun.

A run has three parts: `prepare` makes the model, the data and all that belongs to them,
`run_trainer` trains, `export` writes the bundle. A Lightning user may train with a Trainer of other
arguments or further callbacks:

    run = prepare(params, root, accelerator, checkpoints_of(params, accelerator, root))
    trainer = run.make_trainer([LearningRateMonitor()], profiler="simple")
    trainer.fit(run.module, datamodule=run.data)
"""

import gc
import importlib.util
import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy, Strategy

from common.artifact import Artifact
from common.bundle_layout import HISTORY, MODEL, STATE, version_of
from common.config.loading import ConfigError
from common.config.model import MixedDim, QuotientRemainder
from common.config.params import Params, Train
from common.cpp import reason_of
from common.files import DataError, replaced
from common.layout import FEATURES
from common.logs import get_logger
from features.encode.feature_state import FeatureState
from features.schema.check_params import check_columns
from training.distillation import check_teachers, teacher_scores
from training.distributed.device import Accelerator, check_precision, pick_accelerator
from training.distributed.sharding.placement_report import (
    PLACEMENT_FILE,
    TablePlacement,
    data_parallel_placement,
    format_placement,
    write_placement,
)
from training.ensemble import is_trained, save_member, write_ensemble
from training.evaluation.sample_weights import check_sample_weights
from training.inference.bundle import save_bundle
from training.kernels import choice
from training.kernels.advice import as_text, what_would_be_faster
from training.kernels.memory_hints import keep_memory
from training.launch.launcher import apply_environment, fit_on_ranks, threads_of_a_rank
from training.loop.callbacks import EarlyStopping, RowProgress
from training.loop.checkpoint import LAST, CheckpointCallback, Checkpoints, checkpoints_of
from training.loop.datamodule import FeatureData
from training.loop.diverged import Diverged
from training.loop.divergence import DivergenceDump
from training.loop.interrupt import report_on_interrupt
from training.loop.lightning_module import TrainDLRM
from training.loop.profiler import ProfileSteps
from training.loop.schedule import Schedule, check_schedule
from training.loop.step_loss import loss_to_minimise
from training.loop.training_curves import write_history
from training.loop.warm_start import WarmStart
from training.models.embedding_tables import EmbeddingTables, MakeTables
from training.models.factory import (
    Group,
    composes,
    groups_in_order,
    groups_of,
    inputs_of,
    make_model,
    num_weights,
)
from training.servers.engine import Engine
from training.servers.module import ServedData, ServedDLRM
from training.servers.session import ServerLost, ServersFailed, Session
from training.servers.traffic import Traffic, write_traffic
from training.tensor_files import FLOAT32_BYTES

log = get_logger("train")

COLLECTIVE_TIMEOUT = timedelta(minutes=2)  # a frozen rank ends the run after this


@dataclass(frozen=True)
class Parallelism:
    """How the ranks share the work.

    Attributes:
        strategy: Lightning's strategy.
        make_tables: Makes the model's embedding tables, whole or sharded.
        placement: Which rank has which rows of each table; empty on a single device.
    """

    strategy: Strategy | Literal["auto"]
    make_tables: MakeTables
    placement: list[TablePlacement]


@dataclass(frozen=True)
class TrainingRun:
    """A run that is ready to train.

    Attributes:
        params: The parameters of params.yaml; of an ensemble, with the seed of the member.
        root: The directory with artifacts/ and runs/.
        accelerator: The device that the run trains on.
        checkpoints: The checkpoint files of the run, or of the member of an ensemble.
        features: artifacts/features.
        state: The feature state.
        parallelism: How the ranks share the work.
        module: The LightningModule.
        data: The LightningDataModule.
    """

    params: Params
    root: Path
    accelerator: Accelerator
    checkpoints: Checkpoints
    features: Artifact
    state: FeatureState
    parallelism: Parallelism
    module: TrainDLRM
    data: FeatureData

    @property
    def implementations(self) -> dict[str, str]:
        """The implementation of each operator on this CPU; empty for a run on a GPU."""
        return implementations_of(self.params.train, self.accelerator)

    def make_trainer(self, callbacks: Sequence[pl.Callback] = (), **options: Any) -> pl.Trainer:
        """Make a Trainer for the run.

        Args:
            callbacks: Callbacks, beside those of the module.
            options: Further arguments of `pl.Trainer`, or other values for those of the train
                stage.
        """
        return make_trainer(
            self.params.train,
            self.root,
            self.accelerator,
            self.module.schedule,
            self.parallelism.strategy,
            callbacks,
            **{"plugins": [self.checkpoints], **options},
        )


def train(params: Params, root: Path) -> None:
    """Train on root/artifacts/features and write the bundle root/artifacts/model.

    Raises:
        DataError: Nothing can be learned from the features, or a feature file is damaged.
        ConfigError: The parameters do not fit the machine or the features, or the training
            diverged.
    """
    params = apply_environment(params)
    check_features(Artifact.open(root / FEATURES))
    accelerator = pick_accelerator(params.train)
    check_precision(params.train, accelerator)
    check_parallel(params.train)
    check_warm_start(params.train, root)
    check_teachers(params.train, root)
    checkpoints = checkpoints_of(params, accelerator, root)
    use_threads(params.train)
    teacher_scores(params, root)  # before several ranks need them
    if params.train.ensemble_size == 1:
        traffic = train_model(params, root, accelerator, checkpoints)
    else:
        traffic = train_ensemble(params, root, accelerator, checkpoints)
    if params.train.parallel == "servers":
        for line in traffic.lines():
            log.info(line)
        write_traffic(root, traffic)
    checkpoints.remove()


def train_model(
    params: Params, root: Path, accelerator: Accelerator, checkpoints: Checkpoints
) -> Traffic:
    """Train one model, in this process, on several ranks or with parameter servers.

    Returns:
        What the parameter servers have sent; nothing without them.
    """
    checkpoints.remove_if_damaged()
    with report_on_interrupt(checkpoints):
        if params.train.parallel == "servers":
            # Imported only here: Ray need not be installed.
            from training.servers.ray_engine import RayEngine

            with closing(RayEngine.for_run(params.train)) as engine:
                return fit_on_servers(params, root, checkpoints, engine)
        elif params.train.num_ranks == 1:
            fit(params, root, accelerator, checkpoints)
        else:
            fit_on_ranks(params, root, accelerator, checkpoints)
    return Traffic()


def train_ensemble(
    params: Params, root: Path, accelerator: Accelerator, checkpoints: Checkpoints
) -> Traffic:
    """Train the members of an ensemble one after another, and write the bundle with all of them.

    Returns:
        What the parameter servers have sent for all members together; nothing without them.
    """
    traffic = Traffic()
    size = params.train.ensemble_size
    members = [checkpoints.of_member(member) for member in range(size)]
    for number, member in enumerate(members, start=1):
        if is_trained(member):
            log.info(f"model {number} of {size} has been trained by an earlier run")
            continue
        log.info(f"model {number} of {size}, seed {params.train.seed + number - 1}")
        traffic.add(train_model(params, root, accelerator, member))
        gc.collect()  # frees the tables of this member before those of the next one are made
    write_ensemble(members, params, root, implementations_of(params.train, accelerator))
    return traffic


def fit(params: Params, root: Path, accelerator: Accelerator, checkpoints: Checkpoints) -> None:
    """Train in this process: the only one, or one of torchrun's.

    The first rank writes the bundle, or what is kept of a member of an ensemble. A run that was
    killed resumes from its last checkpoint, and gives the same bytes as a run that was left alone.
    """
    run = prepare(params, root, accelerator, checkpoints)
    if first_rank() and not run.checkpoints.member:
        log_notices(run)
    with run.features.unchanged():
        run_trainer(run)
    if first_rank():
        export(run)


def fit_on_servers(params: Params, root: Path, checkpoints: Checkpoints, engine: Engine) -> Traffic:
    """Train with parameter servers; this process is the driver, and writes the bundle.

    When a server is lost, the run goes back to its last checkpoint.

    Returns:
        What the servers have sent.

    Raises:
        ServersFailed: Another actor than a worker or a server was lost, or too many were.
    """
    try:
        session = Session(engine, params.of_member(checkpoints.member or 0), root)
        while True:
            try:
                run = prepare(params, root, "cpu", checkpoints, session)
                if not run.checkpoints.member and session.is_new:
                    log_notices(run)
                with run.features.unchanged():
                    run_trainer(run)
                break
            except ServerLost as lost:
                session.recover(lost)
                checkpoints.remove_if_damaged()
    except ServersFailed:
        raise
    except ConnectionError as error:  # of the engine
        raise ServersFailed(str(error)) from None
    export(run)
    return session.traffic


def prepare(
    params: Params,
    root: Path,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    session: Session | None = None,
) -> TrainingRun:
    """Make the model with its first weights, and all that its training needs.

    The feature files are not checked again: whoever computed the run's key has checked them, once
    on each node. Of an ensemble, `checkpoints` say which member is trained; they are those of the
    first one if they are those of the whole run.

    With a `session`, its servers have the tables and its workers compute the steps.
    """
    member = checkpoints.member or 0
    params = params.of_member(member)
    quiet_lightning()
    keep_memory()
    use_threads(params.train)
    features = Artifact.open(root / FEATURES, is_checked=True)
    state = FeatureState.load(features.folder / STATE)
    # Another stage may have written these features with another params.yaml.
    check_columns(params, state.schema)
    check_memory(params, state)
    check_sample_weights(features, state.schema)
    find_groups = groups_of if session is None else groups_in_order
    groups = find_groups(params.model, state.cardinalities, inputs_of(state.schema))
    parallelism = make_parallelism(params.train, groups, accelerator, session)
    model = make_model(params, state, parallelism.make_tables)
    if session is not None:
        session.take_tables(model)
    make_data = FeatureData if session is None else ServedData
    data = make_data(features, state.schema, params.train, teacher_scores(params, root))
    batches = data.train_batches()
    warm_start = None
    if warm_start_dir := params.train.warm_start_dir(root):
        warm_start = WarmStart(
            warm_start_dir, params.model, state, params.train.ensemble_size, member
        )
        warm_start.load_weights(model)
    elif params.model.standardise:
        model.standardise.fit(batches.some_dense())
    schedule = Schedule.make(params.train.epochs, batches.steps_per_epoch, params.train.validations)
    check_schedule(params.train, schedule)
    loss = loss_to_minimise(params)
    make_module = TrainDLRM if session is None else partial(ServedDLRM, session)
    module = make_module(model, loss, params.train, schedule, warm_start)
    return TrainingRun(
        params, root, accelerator, checkpoints, features, state, parallelism, module, data
    )


def use_threads(params: Train) -> None:
    """Use as many CPU threads as `train.threads` says, if there is one rank.

    The ranks of a run with several are started with OMP_NUM_THREADS.
    """
    if params.num_ranks == 1:
        torch.set_num_threads(threads_of_a_rank(params))


def run_trainer(run: TrainingRun) -> None:
    """Train from the last checkpoint, or from the start if there is none.

    Raises:
        ConfigError: The training diverged.
    """
    trainer = run.make_trainer(make_callbacks(run))
    try:
        trainer.fit(
            run.module,
            datamodule=run.data,
            ckpt_path=run.checkpoints.last(),
            weights_only=True,
        )
    except Diverged as diverged:
        raise diverged.as_config_error(
            run.params.train, run.module.schedule.num_steps, trainer.global_step
        ) from None


def export(run: TrainingRun) -> None:
    """Write the weights with the lowest validation loss: the bundle, or the member's folder."""
    is_member = run.checkpoints.member is not None
    with replaced(run.checkpoints.trained if is_member else run.root / MODEL) as scratch:
        scratch.mkdir()
        weights = run.checkpoints.best_weights(
            run.module.model, run.module.curves.best.step, scratch
        )
        write_history(scratch / HISTORY, run.module.curves.history)
        if placement := named_placement(run):
            write_placement(scratch / PLACEMENT_FILE, placement)
        if is_member:
            save_member(scratch, weights)
        else:
            save_bundle(scratch, weights, run.features, run.params, run.root, run.implementations)
    if is_member:
        run.checkpoints.remove_files()


def implementations_of(params: Train, accelerator: Accelerator) -> dict[str, str]:
    """Return the implementation of each operator on this CPU; empty for a run on a GPU."""
    return choice.describe(params.rows_per_rank, params.precision) if accelerator == "cpu" else {}


def check_memory(params: Params, state: FeatureState) -> None:
    """Check that the weights fit into this machine's memory, before they take any.

    Those of all members of an ensemble count, because whoever predicts needs them all. If the
    tables are sharded, only one row of each counts: the planner checks the others.

    Raises:
        ConfigError: They do not.
    """
    sharded = params.train.num_ranks > 1 and params.train.parallel != "data"
    sharded = sharded or params.train.has_distant_servers
    cardinalities = [1 if sharded else n for n in state.cardinalities]
    num_dense = len(state.schema.dense_features)
    inputs = inputs_of(state.schema)
    num_bytes = FLOAT32_BYTES * num_weights(params.model, cardinalities, num_dense, inputs)
    ensemble_size = params.train.ensemble_size
    num_bytes *= ensemble_size
    available = psutil.virtual_memory().total
    if num_bytes > available:
        raise ConfigError(
            f"params.yaml: the model has {num_bytes / 1e9:,.0f} GB of weights, and this machine has"
            f" {available / 1e9:,.0f} GB of memory; make"
            f"{f' train.ensemble_size ({ensemble_size}),' if ensemble_size > 1 else ''}"
            " model.embedding_dim"
            f" ({params.model.embedding_dim:,}), the widths of model.bottom_mlp and model.top_mlp,"
            " or the vocabularies smaller (features.min_count, or model.tables)"
        )


def make_parallelism(
    params: Train,
    groups: Sequence[Group],
    accelerator: Accelerator,
    session: Session | None = None,
) -> Parallelism:
    """Choose how the ranks share the work, as `train.parallel` says.

    Args:
        params: The section `train` of params.yaml.
        groups: The groups of embedding tables of the model.
        accelerator: The device of each rank.
        session: The actors of parameter servers, if `parallel` is `servers`.

    Raises:
        ConfigError: The embedding tables do not fit into the memory of the ranks.
    """
    if session is not None:
        return Parallelism("auto", session.make_tables, session.placement(groups))
    if params.num_ranks == 1:
        return Parallelism("auto", EmbeddingTables, [])
    if params.parallel == "data":
        placement = data_parallel_placement(
            groups, params.embedding_optimizer.name, params.num_ranks
        )
        ddp = DDPStrategy(timeout=COLLECTIVE_TIMEOUT, broadcast_buffers=False)
        return Parallelism(ddp, EmbeddingTables, placement)
    # Imported only here: TorchRec takes seconds to import, and may not be installed.
    from training.distributed.sharding.strategy import HybridStrategy

    hybrid = HybridStrategy.for_model(groups, params, accelerator, COLLECTIVE_TIMEOUT)
    return Parallelism(hybrid, hybrid.make_tables, hybrid.placement)


def make_callbacks(run: TrainingRun) -> list[pl.Callback]:
    """Make the callbacks of the train stage; `TrainDLRM.configure_callbacks` adds others."""
    params, module = run.params.train, run.module
    callbacks: list[pl.Callback] = [
        CheckpointCallback(run.checkpoints, every_s=60 * params.checkpoint_minutes),
        RowProgress(
            run.root,
            run.data.train_batches(),
            module.schedule.num_steps,
            run.checkpoints.member or 0,
            params.ensemble_size,
        ),
        DivergenceDump(run.root),
        *make_early_stopping(run),
    ]
    if params.profile and first_rank():
        callbacks.append(ProfileSteps(run.root))
    return callbacks


def make_early_stopping(run: TrainingRun) -> list[pl.Callback]:
    """Make the callback that `train.early_stopping_patience` asks for, if it does."""
    module, patience = run.module, run.params.train.early_stopping_patience
    if patience is None:
        return []
    return [
        EarlyStopping(
            module.curves, module.schedule, patience, at_epoch_ends=module.resets_embeddings
        )
    ]


def make_trainer(
    params: Train,
    root: Path,
    accelerator: Accelerator,
    schedule: Schedule,
    strategy: Strategy | Literal["auto"] = "auto",
    callbacks: Sequence[pl.Callback] = (),
    **options: Any,
) -> pl.Trainer:
    """Make the Trainer of a run.

    On a GPU it asks for deterministic kernels; those used on a CPU are deterministic anyway.

    Args:
        params: The section `train` of params.yaml.
        root: The directory with runs/, where the logger writes.
        accelerator: The device that the run trains on.
        schedule: The steps that a validation follows.
        strategy: Lightning's strategy.
        callbacks: The callbacks, beside those of the module.
        options: Further arguments of `pl.Trainer`, or other values for those given here.
    """
    settings: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": params.devices,
        "num_nodes": params.nodes,
        "strategy": strategy,
        "deterministic": "warn" if accelerator == "gpu" else None,
        "max_epochs": params.epochs,
        "val_check_interval": schedule.validate_every,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "logger": make_logger(params.logger, root),
        "callbacks": list(callbacks),
        "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks),
        "enable_progress_bar": any(isinstance(each, ProgressBar) for each in callbacks),
        "enable_model_summary": False,
    }
    return pl.Trainer(**settings | options)


def make_logger(name: str, root: Path) -> TensorBoardLogger | CSVLogger | Literal[False]:
    """Make the logger that `train.logger` names; it writes below root/runs."""
    if name == "tensorboard":
        return TensorBoardLogger(root / "runs", name=name)
    if name == "csv":
        return CSVLogger(root / "runs", name=name)
    return False


def named_placement(run: TrainingRun) -> list[TablePlacement]:
    """Return the placement of the tables, by the schema's names where one of its tables is one."""
    embeddings = run.module.model.embeddings
    names = {}
    for number, name in enumerate(run.state.schema.tables):
        places = embeddings.places(number)
        if len(places) == 1:
            names[f"{places[0].group}.{places[0].table}"] = name
    return [
        line._replace(table=names.get(line.table, line.table)) for line in run.parallelism.placement
    ]


def log_notices(run: TrainingRun) -> None:
    """Log what the user may not expect of this run."""
    params, tables, batches = run.params, run.params.model.tables, run.data.train_batches()
    if placement := named_placement(run):
        for line in format_placement(placement):
            log.info(line)
    if run.implementations:
        log.info(as_text(run.implementations))
    advice = what_would_be_faster(run.implementations)
    if advice and not reason_of("kernels"):  # which is logged already
        log.info(advice)
    if isinstance(tables, QuotientRemainder | MixedDim) and not composes(
        tables, run.state.cardinalities
    ):
        log.info(
            "no column has more than model.tables.threshold values,"
            f" {tables.threshold:,}: full tables"
        )
    if (params.train.last_days or 0) > len(batches.files):
        log.info(
            f"train.last_days is {params.train.last_days}, but there are only"
            f" {len(batches.files)} training days: trains on all of them"
        )
    if batches.num_rows < batches.batch_size:
        log.info(
            f"one step per epoch: a step takes {batches.batch_size:,} rows (train.batch_size times"
            f" accumulate_grad_batches), and there are {batches.num_rows:,}"
        )
    for other in run.checkpoints.of_others():
        if (other / LAST).exists():
            log.info(
                f"{other} is the checkpoint of another run that was interrupted; that run would"
                " resume with its own parameters, features and code"
            )
    if teachers := params.train.teacher_dirs(run.root):
        log.info(
            f"learns from the labels and the scores of model {', '.join(map(version_of, teachers))}"
        )
    if run.module.warm_start:
        log.info(f"starts from model {run.module.warm_start.version}")


def check_features(features: Artifact) -> None:
    """Check that there are rows to learn from and to choose the weights by.

    Raises:
        DataError: A split has no rows, all training rows have the same label, or data.json is
            damaged.
    """
    splits = features.read_json("data.json")["splits"]
    for split in ("train", "valid"):
        if not splits[split]["num_rows"]:
            raise DataError(
                f"{features.folder / split}: no rows; give a longer log, change data.days or"
                f" features.split.{split}_days in params.yaml"
            )
    label_rate = splits["train"]["label_rate"]
    if label_rate in (0, 1):
        raise DataError(
            f"{features.folder / 'train'}: every label is {label_rate:.0f}, so there is nothing to"
            " learn; check the label column of data.source, or give a longer log"
        )


def check_parallel(params: Train) -> None:
    """Check that `train.parallel` can be used as it is.

    Raises:
        ConfigError: TorchRec is to shard tables and is not installed, or parameter servers are to
            be used on several ranks or on GPUs.
    """
    if params.parallel == "servers":
        check_servers(params)
        return
    if (
        params.num_ranks > 1
        and params.parallel != "data"
        and not importlib.util.find_spec("torchrec")
    ):
        raise ConfigError(
            f"params.yaml: train.parallel is {params.parallel}, but TorchRec is not installed; run"
            " make setup again (requirements/train.txt has it), or set train.parallel to data"
        )


def check_servers(params: Train) -> None:
    """Check that the other parameters fit to parameter servers.

    Raises:
        ConfigError: They do not.
    """
    if params.num_ranks > 1:
        raise ConfigError(
            f"params.yaml: train.parallel is servers, and train.nodes {params.nodes} times"
            f" train.devices {params.devices} are {params.num_ranks} ranks; set both to 1:"
            " train.servers.workers says how many processes train"
        )
    if pick_accelerator(params) != "cpu":
        raise ConfigError(
            "params.yaml: train.parallel is servers, which trains on CPUs; set train.accelerator to"
            " cpu, or train.parallel to hybrid"
        )
    if params.profile:
        raise ConfigError(
            "params.yaml: train.profile measures the steps of this process, and with"
            " train.parallel: servers others compute them; set it to false"
        )


def check_warm_start(params: Train, root: Path) -> None:
    """Check that the run does not start from the bundle that it replaces.

    A second run would have another result.

    Raises:
        ConfigError: It does.
    """
    directory = params.warm_start_dir(root)
    if directory and directory.resolve() == (root / MODEL).resolve():
        raise ConfigError(
            f"params.yaml: train.warm_start_from is {params.warm_start_from}, which this stage"
            " replaces; copy it, to runs/models/VERSION"
        )


def first_rank() -> bool:
    """Return whether this process is the first rank, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def quiet_lightning() -> None:
    """Silence Lightning's remarks on loaders, devices and products; its errors remain."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning|torch\.distributed")
