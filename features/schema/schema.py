"""The model of a schema file: what the columns of a log are, and the features made from them.

All numbers of columns, features and inputs of the model come from here.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from polars.exceptions import PolarsError
from pydantic import BeforeValidator, Field, field_validator, model_validator

from common.config.base import Strict
from common.config.loading import ConfigError, check, one_line, read_yaml, shorten
from features.schema.sample_section import SampleLog, sample_faults
from features.schema.transforms import AnyTransform, expand_short_form

SCHEMAS = Path(__file__).parent
# The (kind, parse) of columns that the sample log generator can write.
GENERATED_COLUMNS = {("dense", "integer"), ("categorical", "hex32")}
UNIX = "unix"
# The `.%f` of a pattern; `%%` is no directive, and is group 1.
FRACTION = re.compile(r"(%%)|\.%f")
OTHER_FRACTION = re.compile(r"(?<!%)(?:%%)*%f")
COLUMN_NAME = re.compile(r"\w[\w.-]*")  # it is also used as the name of a file
MAX_NAME_BYTES = 200  # a file's name has at most 255, with its ending
MAX_BUCKETS = 2**30  # an id is an int32


class TextFormat(Strict):
    """Lines of fields between separators, in the order of the schema's columns.

    Attributes:
        separator: The character between two fields, ASCII.
        quote: The character around fields that contain separators; null if there are none.
        header: Whether the first line contains the names of the columns.
        null_tokens: The texts that mean a missing value.
    """

    kind: Literal["text"]
    separator: Annotated[str, Field(pattern=r"^[\x01-\x7f]$")]
    quote: Annotated[str, Field(pattern=r"^[\x21-\x7f]$")] | None
    header: bool
    null_tokens: list[str]

    @model_validator(mode="after")
    def _separator_is_unambiguous(self) -> "TextFormat":
        if self.separator in ("\n", "\r", self.quote):
            raise ValueError(
                f"separator {self.separator!r} is the same as a line end or as quote {self.quote!r}"
            )
        return self


class JsonLinesFormat(Strict):
    """A JSON object on each line; keys that the schema does not name are ignored.

    Attributes:
        null_tokens: The texts that mean a missing value, as JSON's null does.
    """

    kind: Literal["json_lines"]
    null_tokens: list[str]


class ColumnarFormat(Strict):
    """Files of typed columns; columns that the schema does not name are ignored.

    Attributes:
        kind: Parquet, ORC, or Arrow (also called Feather).
        null_tokens: The texts that mean a missing value, as a null does.
    """

    kind: Literal["parquet", "orc", "arrow"]
    null_tokens: list[str]


class Policy(Strict):
    """Whether the values of a categorical feature have ids of their own or share ids by hash.

    The table of ids is in features/encode/feature_state.py.

    Attributes:
        name: With `vocabulary`, each frequent value has an id of its own, and all other values have
            a reserved one. With `hash`, all values share `buckets` ids. With `vocabulary_and_hash`,
            the values that are not frequent share them.
        buckets: The number of ids that are shared by hash; 0 with `vocabulary`.
    """

    name: Literal["vocabulary", "hash", "vocabulary_and_hash"]
    buckets: Annotated[int, Field(ge=0, le=MAX_BUCKETS)] = 0

    @model_validator(mode="after")
    def _buckets_fit_name(self) -> "Policy":
        if (self.name == "vocabulary") != (self.buckets == 0):
            raise ValueError(
                f"{self.name} with {self.buckets} buckets: "
                "hash and vocabulary_and_hash need some, vocabulary has none"
            )
        return self


AnyPolicy = Annotated[Policy, BeforeValidator(expand_short_form)]


class LabelColumns(Strict):
    """The label, 0 or 1."""

    kind: Literal["label"]
    names: Annotated[list[str], Field(min_length=1, max_length=1)]


class DenseColumns(Strict):
    """Columns of numbers.

    Attributes:
        names: The columns.
        parse: What the values are.
        transform: The transform that makes a feature from each column.
        policy: The policy of the features, if the transform makes categorical ones; else null.
    """

    kind: Literal["dense"]
    names: list[str]
    parse: Literal["integer", "float"]
    transform: AnyTransform
    policy: AnyPolicy | None = None


class CategoricalColumns(Strict):
    """Columns of values that are only compared with one another.

    Attributes:
        names: The columns.
        parse: What the values are: up to eight hex digits, integers, or any text.
        policy: The policy of the features, one for each column.
    """

    kind: Literal["categorical"]
    names: list[str]
    parse: Literal["hex32", "integer", "string"]
    policy: AnyPolicy


class TimeColumns(Strict):
    """Columns of points in time, which derived features are made from.

    Attributes:
        names: The columns.
        parse: The pattern, as of strftime (`%y%m%d%H`), or `unix` for seconds since 1970.
    """

    kind: Literal["time"]
    names: list[str]
    parse: Annotated[str, Field(max_length=100)]

    @model_validator(mode="after")
    def _is_a_pattern(self) -> "TimeColumns":
        """Try the pattern on a date: Polars must be able to write and to read it."""
        if self.parse == UNIX:
            return self
        if not self.parse.isprintable():  # it is part of the reason of a bad row
            raise ValueError(f"{self.parse!r} has characters that cannot be printed")
        if OTHER_FRACTION.search(FRACTION.sub(lambda found: found[1] or "", self.parse)):
            raise ValueError(
                f"{self.parse!r}: %f is allowed after a point only (.%f); elsewhere write the "
                "number of digits: %3f for milliseconds, %6f for microseconds, %9f for nanoseconds"
            )
        zone = "UTC" if "z" in self.parse else None
        example = pl.Series([datetime(2014, 10, 21)]).dt.replace_time_zone(zone)
        try:
            text, pattern = for_polars(example.dt.strftime(self.parse), self.parse)
            text.str.strptime(pl.Datetime("us"), pattern)
        except PolarsError as error:
            reason, *_ = str(error).split("\n")  # the other lines show Polars' own expression
            raise ValueError(
                f"{self.parse!r} is no pattern of a point in time ({reason})"
            ) from None
        return self


class IgnoredColumns(Strict):
    """Columns of the log that are not used."""

    kind: Literal["ignored"]
    names: list[str]


class CopiedColumns(IgnoredColumns):
    """Columns that the model does not use, but that are copied to its scores.

    No schema file declares them: `Schema.with_copied` makes them of ignored or unknown columns.
    """


class DerivedFeature(Strict):
    """One more feature, made from columns that are declared above.

    Attributes:
        name: The name of the feature.
        transform: The transform that makes it.
        of: The columns that it is made from.
        policy: The policy, if the transform makes a categorical feature; else null.
    """

    name: str
    transform: AnyTransform
    of: list[str]
    policy: AnyPolicy | None = None


class DayColumn(Strict):
    """The column that says of which day a row is.

    Attributes:
        column: A time column.
        zone: The time zone of the days, a name such as Europe/Berlin. Times of the log are in UTC.
    """

    column: str
    zone: Annotated[str, Field(max_length=100)] = "UTC"

    @field_validator("zone")
    @classmethod
    def _is_a_zone(cls, zone: str) -> str:
        try:
            pl.Series([datetime(2014, 10, 21)]).dt.replace_time_zone(zone)
        except PolarsError:
            raise ValueError(
                f"{zone!r} is no time zone; give a name such as Europe/Berlin"
            ) from None
        return zone


@dataclass(frozen=True)
class Feature:
    """One input of the model.

    Attributes:
        name: The name of the feature.
        of: The columns that it is made from.
        transform: The transform that makes it; None if the values of a categorical column are taken
            as they are.
        policy: The policy of a categorical feature; None for a dense feature.
    """

    name: str
    of: list[str]
    transform: AnyTransform | None
    policy: Policy | None


Format = Annotated[TextFormat | JsonLinesFormat | ColumnarFormat, Field(discriminator="kind")]
Columns = Annotated[
    LabelColumns | DenseColumns | CategoricalColumns | TimeColumns | IgnoredColumns,
    Field(discriminator="kind"),
]


class Schema(Strict):
    """The columns of a log, in groups, and the features made from them.

    Attributes:
        format: The format of the log.
        columns: The groups of columns; their names are in file order.
        derived: The features that are made from columns besides each column's own feature.
        days: The column that says of which day a row is; null if each file is a day.
        sample: What the sample log generator needs to imitate such a log; null if it cannot.
    """

    format: Format
    columns: list[Columns]
    derived: list[DerivedFeature] = Field(default_factory=list)
    days: DayColumn | None = None
    sample: SampleLog | None = None

    @property
    def names(self) -> list[str]:
        """The names of all columns of the log, in file order."""
        return [name for group in self.columns for name in group.names]

    def log_columns(self, *, labelled: bool) -> list[str]:
        """Return the names of the columns of a labelled or an unlabelled log, in file order."""
        return [name for name in self.names if labelled or name != self.label]

    @property
    def label(self) -> str:
        """The name of the label column."""
        return self._names_of_kind("label")[0]

    @property
    def dense(self) -> list[str]:
        """The names of the dense columns, in file order."""
        return self._names_of_kind("dense")

    @property
    def categorical(self) -> list[str]:
        """The names of the categorical columns, in file order."""
        return self._names_of_kind("categorical")

    @property
    def time(self) -> list[str]:
        """The names of the time columns, in file order."""
        return self._names_of_kind("time")

    @property
    def used(self) -> set[str]:
        """The names of the columns that are not ignored."""
        return {*self.names} - {*self._names_of_kind("ignored")}

    @property
    def hex32(self) -> set[str]:
        """The names of the columns of hex digits, which are read as numbers."""
        return {
            name
            for group in self.columns
            if isinstance(group, CategoricalColumns) and group.parse == "hex32"
            for name in group.names
        }

    @cached_property
    def features(self) -> list[Feature]:
        """The inputs of the model: the feature of each column in file order, then derived ones."""
        features = []
        for group in self.columns:
            if isinstance(group, DenseColumns):
                features += [
                    Feature(name, [name], group.transform, group.policy) for name in group.names
                ]
            elif isinstance(group, CategoricalColumns):
                features += [Feature(name, [name], None, group.policy) for name in group.names]
        features += [Feature(one.name, one.of, one.transform, one.policy) for one in self.derived]
        return features

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
        """The policy of each categorical feature, by the feature's name."""
        return {
            feature.name: feature.policy for feature in self.features if feature.policy is not None
        }

    def with_dense_transform(self, transform: str) -> "Schema":
        """Return this schema with another transform for all dense columns.

        Args:
            transform: The value of `features.dense`: the name of a transform, or `declared` to keep
                those of the schema.
        """
        if transform == "declared":
            return self
        values = self.model_dump(by_alias=True)
        for group in values["columns"]:
            if group["kind"] == "dense":
                group["transform"] = transform
                group["policy"] = "vocabulary" if transform == "floor_ln2" else None
        return Schema.model_validate(values)

    def with_copied(self, names: list[str]) -> "Schema":
        """Return this schema with some columns to be read that the model does not use.

        Args:
            names: The columns. Those that are read anyway stay as they are; those that are not in
                the schema are added at its end.
        """
        columns: list[Any] = []
        for group in self.columns:
            if isinstance(group, IgnoredColumns):
                columns += [
                    (CopiedColumns if name in names else IgnoredColumns)(
                        kind="ignored", names=[name]
                    )
                    for name in group.names
                ]
            else:
                columns.append(group)
        if unknown := [name for name in names if name not in self.names]:
            columns.append(CopiedColumns(kind="ignored", names=unknown))
        return self.model_copy(update={"columns": columns})

    def _names_of_kind(self, kind: str) -> list[str]:
        return [name for group in self.columns if group.kind == kind for name in group.names]


def for_polars(text: Any, pattern: str) -> tuple[Any, str]:
    """Adapt a time and its pattern to Polars, which differs from strptime in two ways.

    It does not parse hours without minutes. And its `%f` are nanoseconds: it reads .5 as 5 ns. The
    fraction of a second after a point is `%.f`.

    Args:
        text: The time, as a Polars expression or series of text.
        pattern: Its pattern, as of strftime.

    Returns:
        The text and the pattern, both with minutes if the pattern has hours.
    """
    pattern = FRACTION.sub(lambda found: found[1] or "%.f", pattern)
    has_hours = re.search("%[HkIl]", pattern)
    has_minutes = re.search("%[MRTcrX]", pattern)
    if has_hours and not has_minutes:
        return text + " 00", f"{pattern} %M"
    return text, pattern


def text_format(schema: Schema) -> TextFormat:
    """Return the format of a text log.

    Raises:
        ConfigError: The log has another format.
    """
    if schema.format.kind != "text":
        raise ConfigError(f"format: text expected, found {schema.format.kind}")
    return schema.format


def load_schema(name: str) -> Schema:
    """Read and check features/schema/NAME.yaml.

    Raises:
        ConfigError: There is no such schema, or it is not valid.
    """
    names = sorted(path.stem for path in SCHEMAS.glob("*.yaml"))
    if name not in names:
        raise ConfigError(
            f"data.schema: {name!r} is no schema; known: {', '.join(names)} "
            "(features/schema/NAME.yaml)"
        )
    path = SCHEMAS / f"{name}.yaml"
    return check_schema(check(Schema, read_yaml(path), path), path)


def check_schema(schema: Schema, path: Path) -> Schema:
    """Check what pydantic cannot: the columns together, and that transforms fit their columns.

    Args:
        schema: The schema.
        path: Its file, for the error message.

    Returns:
        The same schema.

    Raises:
        ConfigError: A name occurs twice or is not allowed, there is not exactly one label, there
            are too few features, a transform does not fit its columns, or `sample` is wrong.
    """
    faults = _column_faults(schema)
    kind_of = {name: group.kind for group in schema.columns for name in group.names}
    for feature in schema.features:
        faults += _transform_faults(feature, kind_of)
    if faults:
        raise ConfigError("\n".join(f"{path}: {one_line(fault)}" for fault in faults))
    if schema.sample:
        faults = _faults_for_sample(schema)
        faults += sample_faults(schema.sample, schema.dense, schema.categorical)
        if faults:
            raise ConfigError("\n".join(f"{path}: sample: {one_line(fault)}" for fault in faults))
    return schema


def _column_faults(schema: Schema) -> list[str]:
    faults = []
    names = [*schema.names, *(one.name for one in schema.derived)]
    duplicates = sorted(name for name, count in Counter(names).items() if count > 1)
    if duplicates:
        faults.append(f"column named twice: {', '.join(duplicates)}")
    kinds = [group.kind for group in schema.columns]
    if kinds.count("label") != 1:
        faults.append(f"one label expected, found {kinds}")
    if not schema.categorical_features or len(schema.features) < 2:
        features = [feature.name for feature in schema.features]
        faults.append(f"two features at least expected, one of them categorical, found {features}")
    if schema.days and schema.days.column not in schema.time:
        faults.append(f"days: {shorten(schema.days.column)} is no time column")
    faults += [
        f"{shorten(name)}: no name for a column (letters, digits, _, - and . only, at most"
        f" {MAX_NAME_BYTES} bytes)"
        for name in names
        if not COLUMN_NAME.fullmatch(name) or len(name.encode()) > MAX_NAME_BYTES
    ]
    return faults


def _faults_for_sample(schema: Schema) -> list[str]:
    """List what the sample log generator cannot write."""
    columns = {
        (group.kind, group.parse)
        for group in schema.columns
        if isinstance(group, DenseColumns | CategoricalColumns)
    }
    faults = [
        f"a {kind} column is parsed as {parse}"
        for kind, parse in sorted(columns - GENERATED_COLUMNS)
    ]
    if schema.format.kind != "text":
        faults.append(f"format is {schema.format.kind}: only text can be generated")
    return faults


def _transform_faults(feature: Feature, kind_of: Mapping[str, str]) -> list[str]:
    """List why a feature's transform does not fit its columns; `kind_of` is by column."""
    transform = feature.transform
    if transform is None:
        return []
    faults = [f"{name} is no column" for name in feature.of if name not in kind_of]
    has_other_kind = any(
        kind_of.get(name, transform.takes) != transform.takes for name in feature.of
    )
    if has_other_kind or len(feature.of) != transform.num_columns:
        faults.append(
            f"{transform.name} takes {transform.num_columns} {transform.takes} column(s), "
            f"found {feature.of}"
        )
    is_categorical = transform.makes == "categorical"
    if is_categorical and feature.policy is None:
        remedy = "give it one, such as policy: vocabulary"
        faults.append(f"{transform.name} makes a categorical feature: {remedy}")
    if not is_categorical and feature.policy is not None:
        faults.append(f"{transform.name} makes a dense feature: remove its policy")
    return [f"{feature.name}: {fault}" for fault in faults]
