"""The parameters of params.yaml, each with its type, its range and its meaning.

params.yaml contains a value for every parameter, and nothing else: there are no defaults in the
code. `params_json_schema` makes the JSON Schema by which editors complete and check the file.
"""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.json_schema import GenerateJsonSchema

from common.config.base import Fraction, NotNegative, Positive, Rate, Strict
from common.config.loading import ConfigError, check, read_yaml
from common.config.model import Model
from common.numbers import ceil_div
from common.user_files import expand_home

PRESETS = Path(__file__).parent / "presets"  # of the section `features`
PARAMS_PRESETS = PRESETS / "params"  # of several sections

TableFormat = Literal["fp32", "fp16", "int8", "int4"]
MlpFormat = Literal["fp32", "bf16"]

# Parameters of earlier versions, each with its present name. `*` matches any key.
RENAMED = {
    "evaluate.band_column": "evaluate.frequency_bucket_column",
    "gate.*.keep": "gate.*.block_promotion",
    "ingest.dask_address": "dask.address",
    "ingest.runner": "dask.address",
    "ingest.shared": "dask.shared_storage",
    "ingest.shared_storage": "dask.shared_storage",
    "promote.level": "promote.significance_level",
    "train.accumulate": "train.accumulate_grad_batches",
    "train.averaging": "train.weight_averaging",
    "train.clip_norm": "train.max_grad_norm",
    "train.early_stop": "train.early_stopping_patience",
    "train.restart_tables": "train.reset_embeddings_each_epoch",
    "train.start_from": "train.warm_start_from",
    "train.table_optimizer": "train.embedding_optimizer",
}


class Data(Strict):
    """The raw log, and the schema that describes it."""

    source: str = Field(
        description="`sample`, the built-in sample log, or a log file, a folder of log files, a"
        " glob pattern such as `logs/day_*.gz`, or a URL such as `s3://bucket/logs`"
        " (docs/guides/where-logs-lie.md)."
    )
    schema_name: str = Field(
        alias="schema",
        description="Name of the schema of the log: NAME of features/schema/NAME.yaml.",
    )
    days: Annotated[int, Field(gt=0, le=100_000)] = Field(
        description="Number of days in a log of a single file, which is cut into equal shares of"
        " its rows. In a log of several files each file is one day, or all files in folders named"
        " by the day."
    )
    until: str | None = Field(
        description="Name of the last log file to read, of several; or the last day, such as"
        " `2026-01-03`, if folders name the days. null: all log files."
    )


class Sample(Strict):
    """The built-in sample log. These parameters are read only if data.source is `sample`."""

    num_rows: Positive = Field(description="Number of rows of the sample log.")
    seed: NotNegative = Field(description="Seed of the random rows.")


class Ingest(Strict):
    """How log files become shards."""

    max_bad_fraction: Fraction = Field(
        description="The stage fails if the share of bad rows in the log is larger than this."
    )
    short_rows: Literal["quarantine", "fill"] = Field(
        description="What happens to a row with too few fields. `quarantine`: it is a bad row."
        " `fill`: the fields that are missing at its end are null."
    )


class Dask(Strict):
    """The Dask cluster whose workers read the log files and make the features."""

    address: Annotated[str, Field(pattern=r"^(tcp|tls)://.+:\d+$")] | None = Field(
        description="Address of the scheduler, such as `tcp://scheduler:8786`"
        " (docs/guides/dask-cluster.md). null: this machine does the work."
    )
    shared_storage: str | None = Field(
        description="Storage that this machine and the workers share, such as"
        " `s3://bucket/prefix`. null: the workers see this folder under the same path."
    )


class DaySplit(Strict):
    """A split by time: the last days are for validation and test."""

    by: Literal["days"] = Field(description="Chooses the split by time.")
    valid_days: Rate = Field(
        description="Length of the validation split, in days; fractions are shares of a day's rows."
    )
    test_days: Rate = Field(
        description="Length of the test split, in days; fractions are shares of a day's rows."
    )
    test_first: bool = Field(
        description="Order of the splits. false: train, valid, test. true: train, test, valid."
    )


class FoldSplit(Strict):
    """A random split into stratified folds, as in the BARS benchmark."""

    by: Literal["folds"] = Field(description="Chooses the split into stratified folds.")
    folds: Annotated[int, Field(ge=3, le=255)] = Field(
        description="Number of folds: one for test, one for validation, all others for training."
    )
    seed: NotNegative = Field(description="Seed of the random folds.")


class Features(Strict):
    """How columns become model inputs."""

    ids: Literal["frequency", "appearance", "padded"] = Field(
        description="How ids are numbered (features/encode/feature_state.py). `appearance` and"
        " `padded` are for the presets."
    )
    min_count: Positive = Field(
        description="A value has an id of its own if it occurs in at least this number of training"
        " rows."
    )
    fit_days: Positive = Field(
        description="Number of first training days that the vocabularies are fitted on together."
        " Each later training day appends its new values."
    )
    dense: Literal["declared", "log1p", "floor_ln2"] = Field(
        description="Transform of the dense columns. `declared`: the schema's. Another name: this"
        " transform for all of them."
    )
    split: Annotated[DaySplit | FoldSplit, Field(discriminator="by")] = Field(
        description="Which rows are for training, validation and test."
    )


class Threshold(Strict):
    """The limits of one figure of a day: warn, block_promotion and stop.

    Limits that are not null must be in the order warn <= block_promotion <= stop.
    """

    warn: Rate | None = Field(description="Above this the report has a warning. null: never.")
    block_promotion: Rate | None = Field(
        description="Above this the model of a nightly run is not promoted. null: never."
    )
    stop: Rate | None = Field(
        description="Above this the features stage fails, and nothing is trained. null: never."
    )

    @model_validator(mode="after")
    def _in_order(self) -> "Threshold":
        limits = [(name, limit) for name, limit in self if limit is not None]
        for (name, limit), (next_name, next_limit) in pairwise(limits):
            if limit > next_limit:
                raise ValueError(
                    f"{name} {limit} is above {next_name} {next_limit}:"
                    " expected warn <= block_promotion <= stop"
                )
        return self


class Gate(Strict):
    """Thresholds of the figures of each day (features/quality/gate.py)."""

    rows: Threshold = Field(
        description="Share of rows that the day lacks, compared with the median of the other days."
    )
    bad_rows: Threshold = Field(description="Share of bad rows among the rows of the day.")
    label_rate: Threshold = Field(
        description="Ratio of the day's label rate and that of the training rows of the other days,"
        " the larger divided by the smaller."
    )
    missing: Threshold = Field(
        description="Difference of a column's share of missing values from that of the training"
        " rows of the other days, up or down."
    )
    unseen: Threshold = Field(
        description="Rise of a column's share of rare and unseen values above that of the training"
        " rows of the other days."
    )
    drift: Threshold = Field(
        description="Population stability index (PSI) of a column. By convention 0.1 to 0.25 is a"
        " small shift, and more is a large one."
    )


class DenseOptimizer(Strict):
    """The optimizer of the dense layers."""

    name: Literal["sgd", "adagrad", "adam"] = Field(description="Name of the optimizer.")
    lr: Rate = Field(description="Learning rate.")


class EmbeddingOptimizer(Strict):
    """The optimizer of the embedding tables. It updates only the rows that a step has read."""

    name: Literal["sgd", "rowwise_adagrad"] = Field(description="Name of the optimizer.")
    lr: Rate = Field(description="Learning rate.")


class Distill(Strict):
    """Knowledge distillation: training on the scores of earlier models (Hinton et al. 2015)."""

    teachers: Annotated[list[str], Field(min_length=1)] = Field(
        description="Folders of the bundles that teach, such as `runs/models/1f2e3d4c5b6a`. The"
        " teachers' score of a row is the sigmoid of their mean logit."
    )
    weight: Annotated[float, Field(gt=0, le=1)] = Field(
        description="w of the labels (1 - w) y + w p that are trained on, where y is the label of a"
        " row and p the teachers' score. The labels need a part: 0.5 is common."
    )

    @model_validator(mode="after")
    def _named_once(self) -> "Distill":
        for k, name in enumerate(self.teachers):
            if name in self.teachers[:k]:
                raise ValueError(f"the teacher {name} is named twice")
        return self


class Servers(Strict):
    """Parameter servers and their workers, for `train.parallel: servers`."""

    address: Annotated[str, Field(pattern=r"^\S+:\d+$")] | None = Field(
        description="Address of the head of a Ray cluster, HOST:PORT. null: all actors run on this"
        " machine."
    )
    servers: Annotated[int, Field(gt=0, le=10_000)] = Field(
        description="Number of table servers. Each has an equal share of the rows of every table."
    )
    workers: Annotated[int, Field(gt=0, le=10_000)] = Field(
        description="Number of workers, which compute the gradients of steps."
    )
    staleness: NotNegative = Field(
        description="Number of updates that a step may miss because they began before it and have"
        " not been applied. 0: one step at a time, with the result of a single device. Below twice"
        " the number of workers minus 1, workers wait for each other."
    )
    dense_every: Positive = Field(
        description="Number of steps after which a worker exchanges the dense layers with the dense"
        " server. 1: their gradients are applied there in each step."
    )


class Train(Strict):
    """One training run."""

    seed: NotNegative = Field(description="Seed of the initial weights and of the order of rows.")
    warm_start_from: str | None = Field(
        description="Folder of a bundle whose weights the training begins with, such as"
        " `runs/models/1f2e3d4c5b6a`. null: training from scratch."
    )
    last_days: Positive | None = Field(
        description="Number of last training days to train on: those that the model of"
        " warm_start_from has not seen. null: all training days."
    )
    distill: Distill | None = Field(
        description="Teachers, and how much their scores count beside the labels. null: training on"
        " the labels alone."
    )
    ensemble_size: Annotated[int, Field(gt=0, le=100)] = Field(
        description="Number of models that are trained one after another, with the seeds seed,"
        " seed + 1, ... The bundle has them all, and a score is the sigmoid of their mean logit."
    )
    epochs: Positive = Field(description="Number of passes over the training rows.")
    reset_embeddings_each_epoch: bool = Field(
        description="true: each epoch but the first begins with the initial embedding tables,"
        " because embeddings overfit in the second epoch. The dense layers keep what they learned."
    )
    batch_size: Positive = Field(description="Rows of a batch, of all devices together.")
    accumulate_grad_batches: Annotated[int, Field(gt=0, le=10_000)] = Field(
        description="Number of batches of one step."
    )
    shuffle_rows: NotNegative = Field(
        description="Number of rows that are shuffled together; they come from all parts of the"
        " log. 0: rows keep the order of the log."
    )
    dense_optimizer: DenseOptimizer = Field(description="Optimizer of the dense layers.")
    embedding_optimizer: EmbeddingOptimizer = Field(
        description="Optimizer of the embedding tables."
    )
    weight_averaging: bool = Field(
        description="true: the model is the mean of the dense layers' weights over about the last"
        " ninth of an epoch; with reset_embeddings_each_epoch also the mean of all weights over the"
        " epochs but the first. false: weights are not averaged."
    )
    warmup_steps: NotNegative = Field(
        description="Number of first steps in which the learning rates rise linearly."
    )
    decay_steps: NotNegative = Field(
        description="Number of last steps in which the learning rates fall to zero, quadratically."
    )
    max_grad_norm: Rate | None = Field(
        description="The gradients of a step, of all weights together, are scaled down to this"
        " Euclidean norm. null: they are not."
    )
    validations: Positive = Field(
        description="Approximate number of validations in a run; each epoch ends with one. The"
        " weights with the lowest validation logloss are kept."
    )
    early_stopping_patience: Positive | None = Field(
        description="Training stops after this number of validations without a lower logloss. With"
        " reset_embeddings_each_epoch only the validation at the end of an epoch counts. null:"
        " training never stops early."
    )
    checkpoint_minutes: Rate = Field(
        description="Minutes between two checkpoints. An interrupted run resumes from the last one,"
        " and so loses at most this time, or a hundredth of the run if that is longer."
    )
    precision: Literal["fp32", "bf16"] = Field(
        description="`bf16`: the factors of the MLPs' matrix products are rounded to bfloat16."
        " Weights, sums and scores are float32 in both cases."
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        description="The kind of device to train on. `auto`: GPUs if there are any."
    )
    threads: Literal["auto"] | Annotated[int, Field(gt=0, le=4096)] = Field(
        description="Number of CPU threads of each device's process. `auto`: the CPUs that the"
        " affinity mask and the control group's quota leave this process, or OMP_NUM_THREADS if it"
        " is set, shared by the devices of the node."
    )
    devices: Annotated[int, Field(gt=0, le=1024)] = Field(
        description="Number of devices of each node."
    )
    nodes: Annotated[int, Field(gt=0, le=10_000)] = Field(
        description="Number of machines. On all but the first `clickmill stage join` runs"
        " (docs/guides/several-nodes.md)."
    )
    parallel: Literal["data", "model", "hybrid", "servers"] = Field(
        description="Where several devices keep the embedding tables (docs/guides/several-gpus.md)."
        " `data`: all tables on every device. `model`: the rows are spread. `hybrid`: the rows are"
        " spread, but small tables are on every device. `servers`: the rows are on parameter"
        " servers, and asynchronous workers train (docs/guides/parameter-servers.md)."
    )
    servers: Servers = Field(description="Parameter servers, for `parallel: servers`.")
    logger: Literal["tensorboard", "csv", "none"] = Field(
        description="Format of the live training curves in runs/."
    )
    profile: bool = Field(
        description="true: the time of some steps is measured by operator, into runs/profile/."
    )

    def warm_start_dir(self, root: Path) -> Path | None:
        """Return the folder of `warm_start_from`, which may begin with `~`; None if it is null."""
        if self.warm_start_from is None:
            return None
        return root / expand_home(Path(self.warm_start_from))

    def teacher_dirs(self, root: Path) -> list[Path]:
        """Return the folders of `distill.teachers`, which may begin with `~`."""
        teachers = self.distill.teachers if self.distill else []
        return [root / expand_home(Path(name)) for name in teachers]

    def of_member(self, member: int) -> "Train":
        """Return the parameters of a member of the ensemble, which is counted from 0."""
        return self.model_copy(update={"seed": self.seed + member})

    @property
    def averages_epochs(self) -> bool:
        """Whether the model is a mean over epochs, each of which begins with the same tables."""
        return self.weight_averaging and self.reset_embeddings_each_epoch and self.epochs > 1

    @property
    def has_distant_servers(self) -> bool:
        """Whether the tables are on servers of other machines."""
        return self.parallel == "servers" and self.servers.address is not None

    @property
    def num_ranks(self) -> int:
        """Number of processes of the training, one for each device."""
        return self.nodes * self.devices

    @property
    def rows_per_rank(self) -> int:
        """The largest number of rows of a batch that one process computes."""
        return ceil_div(self.batch_size, self.num_ranks)


class Evaluate(Strict):
    """The figures of the report."""

    bootstrap_rounds: Annotated[int, Field(gt=0, le=10_000)] = Field(
        description="Number of bootstrap resamples for each confidence interval."
    )
    frequency_bucket_column: str | None = Field(
        description="Categorical feature whose values group the test rows by frequency. null: the"
        " feature with the most ids."
    )


class Export(Strict):
    """How the trained model is exported for serving (docs/guides/export.md)."""

    runtime: Literal["onnx", "aoti"] | None = Field(
        description="What will compute the scores. `onnx`: ONNX Runtime, which `clickmill serve`"
        " uses. `aoti`: PyTorch's AOTInductor, for programs that have PyTorch. Null: the stage"
        " `export` makes no serving bundle."
    )
    tables: TableFormat = Field(
        description="Format of the numbers in the embedding tables. `fp32`: as they were trained."
    )
    mlps: MlpFormat = Field(
        description="Format of the weights of the linear layers. `fp32`: as they were trained."
    )
    max_logloss_loss: Annotated[float, Field(ge=0)] = Field(
        description="The export is refused if these formats raise the logloss of the test rows by"
        " more than this, in nats."
    )


class Range(Strict):
    """A range of numbers."""

    low: Rate = Field(description="The lowest value that is accepted.")
    high: Rate = Field(description="The highest value that is accepted.")

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self


class Promote(Strict):
    """The checks that a challenger must pass to be promoted (training/promotion/checks.py)."""

    significance_level: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        description="Level of the one-sided paired bootstrap test whether the challenger is worse"
        " than the champion, in logloss or AUC, on the same test rows."
    )
    calibration: Range = Field(
        description="Accepted range of predicted clicks divided by observed clicks."
    )
    max_ece: Fraction = Field(description="Largest accepted expected calibration error (ECE).")


class Serve(Strict):
    """How a nightly run compares served traffic with labels."""

    request_log: str | None = Field(
        description="Folder of the request log, relative to the project, as `clickmill serve"
        " --log-requests` writes it (docs/guides/served-traffic.md). A nightly run joins its rows"
        " with the labels of the new days. null: none does."
    )
    log_key: str | None = Field(
        description="The column of the raw log that has the keys of the request log, such as an"
        " impression id. null: the request log is not read."
    )

    @model_validator(mode="after")
    def _both_or_neither(self) -> "Serve":
        if (self.request_log is None) != (self.log_key is None):
            missing = "log_key" if self.log_key is None else "request_log"
            raise ValueError(
                f"{missing} is null: served rows find their labels by the key, so set both, or"
                " neither"
            )
        return self

    def request_log_dir(self, root: Path) -> Path | None:
        """Return the folder of `request_log`, which may begin with `~`; None if it is null."""
        return None if self.request_log is None else root / expand_home(Path(self.request_log))


class Params(Strict):
    """The parameters of clickmill (params.yaml)."""

    preset: str | None = Field(
        description="`quality`: the most accurate model, whatever its training costs. The values of"
        " common/config/presets/params/quality.yaml replace those of the file. null: none does."
    )
    data: Data = Field(description="The raw log, and the schema that describes it.")
    sample: Sample = Field(description="The built-in sample log.")
    ingest: Ingest = Field(description="How log files become shards.")
    dask: Dask = Field(description="The Dask cluster that ingest and features use, if any.")
    features: Features = Field(description="How columns become model inputs.")
    gate: Gate = Field(description="When unusual data warns, blocks promotion or stops.")
    model: Model = Field(description="The network and its loss.")
    train: Train = Field(description="The training run.")
    evaluate: Evaluate = Field(description="The figures of the report.")
    export: Export = Field(description="How the model is exported for serving.")
    promote: Promote = Field(description="When a challenger is promoted.")
    serve: Serve = Field(description="How a nightly run compares served traffic with labels.")

    def of_member(self, member: int) -> "Params":
        """Return the parameters of a member of the ensemble, which is counted from 0."""
        return self.model_copy(update={"train": self.train.of_member(member)})


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml.

    `features` may be the name of a preset, which then replaces this section. `preset` may be the
    name of one of several sections, whose values replace those of the file.

    Raises:
        ConfigError: The message names the file, the key, the value found and what is allowed.
    """
    values = read_yaml(path)
    if isinstance(values.get("features"), str):
        values["features"] = read_preset(values["features"])
    if isinstance(values.get("preset"), str):
        for section, replacing in read_params_preset(values["preset"]).items():
            if isinstance(values.get(section), dict):
                values[section] |= replacing
    return check(Params, values, path, RENAMED)


def preset_names(directory: Path = PRESETS) -> list[str]:
    """Return the names of the presets in a folder, sorted."""
    return sorted(path.stem for path in directory.glob("*.yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """Read the section `features` of a preset, common/config/presets/NAME.yaml.

    Raises:
        ConfigError: There is no preset of this name.
    """
    return _read("features", name, PRESETS)


def read_params_preset(name: str) -> dict[str, Any]:
    """Read the values, by section, of a preset, common/config/presets/params/NAME.yaml.

    Raises:
        ConfigError: There is no preset of this name.
    """
    return _read("preset", name, PARAMS_PRESETS)


def _read(key: str, name: str, directory: Path) -> dict[str, Any]:
    """Read the preset that a key of params.yaml names."""
    names = preset_names(directory)
    if name not in names:
        raise ConfigError(f"{key}: there is no preset {name!r}; the presets are {', '.join(names)}")
    return read_yaml(directory / f"{name}.yaml")


def params_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of params.yaml (docs/params.schema.json).

    In it, `features` may also be the name of a preset, as `load_params` accepts it, and `preset`
    is one of the names.
    """
    schema = Params.model_json_schema(by_alias=True)
    features = schema["properties"]["features"]
    section = {"$ref": features.pop("$ref")}
    preset = {"enum": preset_names(), "description": "Name of a preset."}
    features["anyOf"] = [section, preset]
    schema["properties"]["preset"]["anyOf"][0] = {"enum": preset_names(PARAMS_PRESETS)}
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}
