"""params.yaml as strict models: every value stands in the file, and anything else in the file is an error."""

import re
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from common.config.base import Fraction, NotNegative, Positive, Rate, Strict
from common.config.model import Model

PRESETS = Path(__file__).parent / "presets"
CHOICES = (
    "union_tag_invalid",
    "union_tag_not_found",
)  # pydantic's names for a fault in the value that chooses a model

# Parameters of earlier versions, each with its name of today. `*` stands for any key.
RENAMED = {
    "evaluate.band_column": "evaluate.frequency_bucket_column",
    "gate.*.keep": "gate.*.block_promotion",
    "ingest.shared": "ingest.shared_storage",
    "promote.level": "promote.significance_level",
    "train.accumulate": "train.accumulate_grad_batches",
    "train.averaging": "train.weight_averaging",
    "train.clip_norm": "train.max_grad_norm",
    "train.early_stop": "train.early_stopping_patience",
    "train.restart_tables": "train.reset_embeddings_each_epoch",
    "train.start_from": "train.warm_start_from",
    "train.table_optimizer": "train.embedding_optimizer",
}

M = TypeVar("M", bound=BaseModel)


class ConfigError(ValueError):
    """A declaration (params.yaml, a schema, a preset) that says something impossible. The message names file, key and value."""


class Data(Strict):
    source: str
    schema_name: str = Field(alias="schema")
    days: Positive
    until: str | None


class Sample(Strict):
    num_rows: Positive
    seed: NotNegative


class Ingest(Strict):
    max_bad_fraction: Fraction
    short_rows: Literal["quarantine", "fill"]
    runner: Literal["local", "dask"]
    dask_address: Annotated[str, Field(pattern=r"^(tcp|tls)://.+:\d+$")] | None
    shared_storage: str | None

    @model_validator(mode="after")
    def _has_address(self) -> "Ingest":
        if self.runner == "dask" and not self.dask_address:
            raise ValueError(
                "runner is dask, but dask_address is null; give its scheduler's, such as tcp://scheduler:8786"
            )
        return self


class DaySplit(Strict):
    by: Literal["days"]
    valid_days: Rate
    test_days: Rate
    test_first: bool


class FoldSplit(Strict):
    by: Literal["folds"]
    folds: Annotated[int, Field(ge=3)]
    seed: NotNegative


class Features(Strict):
    ids: Literal["frequency", "appearance", "padded"]
    min_count: Positive
    fit_days: Positive
    dense: Literal["declared", "log1p", "floor_ln2"]
    split: Annotated[DaySplit | FoldSplit, Field(discriminator="by")]


class Threshold(Strict):
    """What a figure of the data may reach: above `warn` the report says so, above `block_promotion` a night keeps the production model, above `stop`
    the stage fails. null: never."""

    warn: Rate | None
    block_promotion: Rate | None
    stop: Rate | None

    @model_validator(mode="after")
    def _in_order(self) -> "Threshold":
        given = [(name, value) for name, value in self if value is not None]
        for (name, value), (next_name, next_value) in pairwise(given):
            if value > next_value:
                raise ValueError(
                    f"{name} {value} is above {next_name} {next_value}: warn <= block_promotion <= stop expected"
                )
        return self


class Gate(Strict):
    """The figures are defined in features/quality/gate.py."""

    rows: Threshold
    bad_rows: Threshold
    label_rate: Threshold
    missing: Threshold
    unseen: Threshold
    drift: Threshold


class DenseOptimizer(Strict):
    name: Literal["sgd", "adagrad", "adam"]
    lr: Rate


class EmbeddingOptimizer(Strict):
    name: Literal["sgd", "rowwise_adagrad"]
    lr: Rate


class Train(Strict):
    seed: NotNegative
    warm_start_from: str | None
    last_days: Positive | None
    epochs: Positive
    reset_embeddings_each_epoch: bool
    batch_size: Positive
    accumulate_grad_batches: Positive
    shuffle_rows: NotNegative
    dense_optimizer: DenseOptimizer
    embedding_optimizer: EmbeddingOptimizer
    weight_averaging: bool
    warmup_steps: NotNegative
    decay_steps: NotNegative
    max_grad_norm: Rate | None
    validations: Positive
    early_stopping_patience: Positive | None
    checkpoint_minutes: Rate
    precision: Literal["fp32", "bf16"]
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Positive
    nodes: Positive
    parallel: Literal["data", "model", "hybrid"]
    logger: Literal["tensorboard", "csv", "none"]
    profile: bool

    @property
    def num_ranks(self) -> int:
        return self.nodes * self.devices


class Evaluate(Strict):
    bootstrap_rounds: Positive
    frequency_bucket_column: str | None


class Range(Strict):
    low: Rate
    high: Rate

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self


class Promote(Strict):
    """What the checks are stands in training/promotion/checks.py."""

    significance_level: Annotated[float, Field(gt=0, lt=0.5)]
    calibration: Range
    max_ece: Fraction


class Params(Strict):
    data: Data
    sample: Sample
    ingest: Ingest
    features: Features
    gate: Gate
    model: Model
    train: Train
    evaluate: Evaluate
    promote: Promote


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml; a preset's name in place of `features` is replaced by what the preset says.

    Raises ConfigError naming the file, the key, the value found and what is allowed.
    """
    values = read_yaml(path)
    if isinstance(values.get("features"), str):
        values["features"] = read_preset(values["features"])
    return check(Params, values, path)


def read_preset(name: str) -> dict[str, Any]:
    """The `features` section that a preset stands for: common/config/presets/NAME.yaml."""
    known = sorted(preset.stem for preset in PRESETS.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"features: {name!r} is no preset; known: {', '.join(known)}")
    return read_yaml(PRESETS / f"{name}.yaml")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping (so 1e-3 is a number). Raises ConfigError when there is none."""
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} not found; run this in the repository's root") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(
            f"{path} is not YAML: {error.problem}, line {mark.line + 1 if mark else '?'} or the one above"
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a mapping expected, found {type(values).__name__}")
    return values


def check(model: type[M], values: Any, path: Path) -> M:
    """Validate values from path; every fault becomes a line `path: key: what is wrong (found value)`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors()
        keys = [_key(fault, values) for fault in faults]
        missing = {
            key for key, fault in zip(keys, faults, strict=True) if fault["type"] == "missing"
        }
        lines = [
            [str(path), *filter(None, [key]), _describe(fault, key, missing)]
            for key, fault in zip(keys, faults, strict=True)
        ]
        raise ConfigError("\n".join(map(": ".join, lines))) from None


def _key(fault: Any, values: Any) -> str:
    """As the file has it: pydantic also puts in which one of several models it was that a value's `name` chose, and not that `name`."""
    key, asked_for = [], fault["loc"][-1] if fault["type"] == "missing" else None
    for place in fault["loc"]:
        there = (
            place in values
            if isinstance(values, dict)
            else isinstance(values, list) and isinstance(place, int)
        )
        if (
            there or place == asked_for
        ):  # else it is the name of a model, or of what a short form stands for
            key.append(place)
            values = values[place] if there else None
    if fault["type"] in CHOICES:
        key.append(_choice(fault))
    return ".".join(map(str, key))


def _choice(fault: Any) -> str:
    name: str = fault["ctx"]["discriminator"]
    return name.strip("'")


def _new_name(key: str) -> str | None:
    """Return today's name of a parameter of an earlier version, None for any other key."""
    for old, new in RENAMED.items():
        if match := re.fullmatch(re.escape(old).replace(r"\*", "(.+)"), key):
            return new.replace("*", match[1]) if match.groups() else new
    return None


def _describe(fault: Any, key: str, missing: set[str]) -> str:
    if fault["type"] in ("missing", "union_tag_not_found"):
        return "missing"
    if fault["type"] == "extra_forbidden":
        if new_name := _new_name(key):
            return f"this parameter is now called {new_name}; rename it"
        meant = get_close_matches(key, missing, n=1)
        return "no such key" + (f"; is it {meant[0]}?" if meant else f" (found {fault['input']!r})")
    if fault["type"] == "value_error":  # of our own validators, which name the value
        return str(fault["ctx"]["error"])
    if fault["type"] == "union_tag_invalid":
        return f"Input should be one of {fault['ctx']['expected_tags']} (found {fault['input'][_choice(fault)]!r})"
    if fault["type"] in ("model_type", "model_attributes_type"):
        return f"a mapping expected (found {fault['input']!r})"
    return f"{fault['msg']} (found {fault['input']!r})"
