"""A dataset is a declaration: one YAML file says what the columns of its log are, and everything else is derived from it."""

import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from polars.exceptions import PolarsError
from pydantic import BeforeValidator, Field, model_validator

from common.config.base import NotNegative, Strict
from common.config.loading import ConfigError, check, read_yaml
from features.sample.sample_schema import SampleLog, sample_faults
from features.schema.transforms import AnyTransform, named

SCHEMAS = Path(__file__).parent
IMITATED = {("dense", "integer"), ("categorical", "hex32")}  # what the sample log generator writes
UNIX = "unix"
NAME = re.compile(r"\w[\w.-]*")  # it becomes a file's name


class TextFormat(Strict):
    """Lines of separated fields, in the order of the schema's columns. quote: the character around fields that hold separators, or null."""

    kind: Literal["text"]
    separator: Annotated[str, Field(pattern=r"^[\x01-\x7f]$")]
    quote: Annotated[str, Field(pattern=r"^[\x21-\x7f]$")] | None
    header: bool
    null_tokens: list[str]

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> "TextFormat":
        if self.separator in ("\n", "\r", self.quote):
            raise ValueError(
                f"separator {self.separator!r} cannot be told from a line end or from quote {self.quote!r}"
            )
        return self


class JsonLinesFormat(Strict):
    """A JSON object a line; keys that the schema does not name are ignored."""

    kind: Literal["json_lines"]
    null_tokens: list[str]


class ParquetFormat(Strict):
    """Parquet files; columns that the schema does not name are ignored."""

    kind: Literal["parquet"]
    null_tokens: list[str]


class Policy(Strict):
    """How the values of a categorical feature get their ids (the table is in features/encode/feature_state.py).

    vocabulary: the frequent ones have an id each; hash: all share `buckets` ids; vocabulary_and_hash: the rest shares them.
    """

    name: Literal["vocabulary", "hash", "vocabulary_and_hash"]
    buckets: NotNegative = 0

    @model_validator(mode="after")
    def _fits(self) -> "Policy":
        if (self.name == "vocabulary") != (self.buckets == 0):
            raise ValueError(
                f"{self.name} with {self.buckets} buckets: hash and vocabulary_and_hash need some, vocabulary has none"
            )
        return self


AnyPolicy = Annotated[Policy, BeforeValidator(named)]


class LabelColumns(Strict):
    """0 or 1."""

    kind: Literal["label"]
    names: Annotated[list[str], Field(min_length=1, max_length=1)]


class DenseColumns(Strict):
    """Numbers. A transform that makes a category of them needs a policy."""

    kind: Literal["dense"]
    names: list[str]
    parse: Literal["integer", "float"]
    transform: AnyTransform
    policy: AnyPolicy | None = None


class CategoricalColumns(Strict):
    """Values that are only ever compared: up to eight hex digits, integers, or any text."""

    kind: Literal["categorical"]
    names: list[str]
    parse: Literal["hex32", "integer", "string"]
    policy: AnyPolicy


class TimeColumns(Strict):
    """Points in time, read by derived features. parse: strftime's pattern (%y%m%d%H), or unix: seconds since 1970."""

    kind: Literal["time"]
    names: list[str]
    parse: str

    @model_validator(mode="after")
    def _is_a_pattern(self) -> "TimeColumns":
        if self.parse != UNIX:
            zone = "UTC" if "z" in self.parse else None
            try:
                written = (
                    pl.Series([datetime(2014, 10, 21)])
                    .dt.replace_time_zone(zone)
                    .dt.strftime(self.parse)
                )
                text, pattern = with_minutes(written, self.parse)
                text.str.strptime(pl.Datetime("us"), pattern)
            except PolarsError as error:
                reason, *_ = str(error).split("\n")  # behind it Polars names its own expression
                raise ValueError(
                    f"{self.parse!r} is no pattern of a point in time ({reason})"
                ) from None
        return self


class IgnoredColumns(Strict):
    """In the log, and nowhere after it."""

    kind: Literal["ignored"]
    names: list[str]


class Derived(Strict):
    """One more feature, made of columns that are declared above. A categorical one needs a policy."""

    name: str
    transform: AnyTransform
    of: list[str]
    policy: AnyPolicy | None = None


@dataclass(frozen=True)
class Feature:
    """One input of the model. transform: None where the raw column's value is the category; policy: None where the feature is dense."""

    name: str
    of: list[str]
    transform: AnyTransform | None
    policy: Policy | None


Format = Annotated[TextFormat | JsonLinesFormat | ParquetFormat, Field(discriminator="kind")]
Columns = Annotated[
    LabelColumns | DenseColumns | CategoricalColumns | TimeColumns | IgnoredColumns,
    Field(discriminator="kind"),
]


class Schema(Strict):
    """What the columns of a log are, in groups, and the features made of them: all counts come from here and nowhere else."""

    format: Format
    columns: list[Columns]
    derived: list[Derived] = Field(default_factory=list)
    sample: SampleLog | None = None

    @property
    def names(self) -> list[str]:
        """Every column of the log, in file order."""
        return [name for group in self.columns for name in group.names]

    def columns_of(self, labelled: bool) -> list[str]:
        """The columns of a labelled or an unlabelled log, in file order."""
        return [name for name in self.names if labelled or name != self.label]

    @property
    def label(self) -> str:
        return self._of("label")[0]

    @property
    def dense(self) -> list[str]:
        return self._of("dense")

    @property
    def categorical(self) -> list[str]:
        return self._of("categorical")

    @property
    def time(self) -> list[str]:
        return self._of("time")

    @cached_property
    def features(self) -> list[Feature]:
        """The model's inputs: each dense and categorical column's own feature in file order, then the derived ones."""
        made = []
        for group in self.columns:
            if isinstance(group, DenseColumns):
                made += [
                    Feature(name, [name], group.transform, group.policy) for name in group.names
                ]
            elif isinstance(group, CategoricalColumns):
                made += [Feature(name, [name], None, group.policy) for name in group.names]
        return made + [Feature(one.name, one.of, one.transform, one.policy) for one in self.derived]

    @property
    def dense_features(self) -> list[str]:
        """The names of the N dense features."""
        return [feature.name for feature in self.features if feature.policy is None]

    @property
    def categorical_features(self) -> list[str]:
        """The names of the F categorical features."""
        return [feature.name for feature in self.features if feature.policy is not None]

    @property
    def policies(self) -> dict[str, Policy]:
        """Of each categorical feature."""
        return {
            feature.name: feature.policy for feature in self.features if feature.policy is not None
        }

    def with_dense(self, transform: str) -> "Schema":
        """The same log with another transform for every dense column (`features.dense` of params.yaml); "declared" changes nothing."""
        if transform == "declared":
            return self
        values = self.model_dump(by_alias=True)
        for group in values["columns"]:
            if group["kind"] == "dense":
                group |= {
                    "transform": transform,
                    "policy": "vocabulary" if transform == "floor_ln2" else None,
                }
        return Schema.model_validate(values)

    def _of(self, kind: str) -> list[str]:
        return [name for group in self.columns if group.kind == kind for name in group.names]


def with_minutes(text: Any, pattern: str) -> tuple[Any, str]:
    """A text (or expression) and its time pattern, with minutes added where there are hours without: Polars wants both."""
    alone = re.search("%[HkIl]", pattern) and not re.search("%[MRTcrX]", pattern)
    return (text + " 00", f"{pattern} %M") if alone else (text, pattern)


def text_format(schema: Schema) -> TextFormat:
    """The format of a log that is lines of fields. Raises ConfigError when it is another one."""
    if schema.format.kind != "text":
        raise ConfigError(f"format: text expected, found {schema.format.kind}")
    return schema.format


def load_schema(name: str) -> Schema:
    """features/schema/NAME.yaml, checked. Raises ConfigError for an unknown name or an impossible declaration."""
    known = sorted(path.stem for path in SCHEMAS.glob("*.yaml"))
    if name not in known:
        raise ConfigError(
            f"data.schema: {name!r} is no schema; known: {', '.join(known)} (features/schema/NAME.yaml)"
        )
    path = SCHEMAS / f"{name}.yaml"
    return check_schema(check(Schema, read_yaml(path), path), path)


def check_schema(schema: Schema, path: Path) -> Schema:
    """One label, at least one categorical feature, no name twice, and transforms that fit their columns."""
    names = [*schema.names, *(one.name for one in schema.derived)]
    twice = sorted({name for name in names if names.count(name) > 1})
    kinds = [group.kind for group in schema.columns]
    faults = [f"column named twice: {', '.join(twice)}"] if twice else []
    if kinds.count("label") != 1:
        faults.append(f"one label expected, found {kinds}")
    if not schema.categorical_features or len(schema.features) < 2:
        faults.append(
            f"two features at least expected, one of them categorical, found {[feature.name for feature in schema.features]}"
        )
    faults += [
        f"{name}: no name for a column (letters, digits, _, - and . only)"
        for name in names
        if not NAME.fullmatch(name)
    ]
    for feature in schema.features:
        faults += _faults(
            feature, {name: group.kind for group in schema.columns for name in group.names}
        )
    if faults:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
    if schema.sample and (
        faults := [
            *_not_imitated(schema),
            *sample_faults(schema.sample, schema.dense, schema.categorical),
        ]
    ):
        raise ConfigError("\n".join(f"{path}: sample: {fault}" for fault in faults))
    return schema


def _not_imitated(schema: Schema) -> list[str]:
    parsed_as = {
        (group.kind, group.parse)
        for group in schema.columns
        if isinstance(group, DenseColumns | CategoricalColumns)
    }
    faults = [
        f"a {kind} column is parsed as {parse}" for kind, parse in sorted(parsed_as - IMITATED)
    ]
    return faults + (
        []
        if schema.format.kind == "text"
        else [f"format is {schema.format.kind}: only text is imitated"]
    )


def _faults(feature: Feature, kinds: dict[str, str]) -> list[str]:
    transform = feature.transform
    if transform is None:
        return []
    faults = [f"{name} is no column" for name in feature.of if name not in kinds]
    if len(feature.of) != transform.num_columns or any(
        kinds.get(name, transform.takes) != transform.takes for name in feature.of
    ):
        faults.append(
            f"{transform.name} takes {transform.num_columns} {transform.takes} column(s), found {feature.of}"
        )
    if (transform.makes == "categorical") != (feature.policy is not None):
        mend = (
            "give it one, such as policy: vocabulary"
            if feature.policy is None
            else "remove its policy"
        )
        faults.append(f"{transform.name} makes a {transform.makes} feature: {mend}")
    return [f"{feature.name}: {fault}" for fault in faults]
