"""The model of a schema file: what the columns of a log are, and the features made from them.

All numbers of columns, features and inputs of the model come from here.
"""

import unicodedata
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from common.config.base import Strict
from common.config.loading import ConfigError, check, one_line, read_yaml, shorten
from common.file_names import file_names
from features.schema.list_columns import ListOptions, list_faults
from features.schema.listed_values import find_number
from features.schema.sample_section import SampleLog, sample_faults
from features.schema.time_parses import is_time_zone, time_parse_fault
from features.schema.transforms import AnyTransform, expand_short_form

SCHEMAS = Path(__file__).parent
# The (kind, parse) of columns that the sample log generator can write.
GENERATED_COLUMNS = {("dense", "integer"), ("categorical", "hex32")}
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


def is_none(value: object) -> bool:
    """Return whether a value is None."""
    return value is None


AnyPolicy = Annotated[Policy, BeforeValidator(expand_short_form)]


def as_text(value: object) -> object:
    """Return a whole number or a boolean of YAML as the text that it is compared with."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else value


ListedValues = Annotated[list[Annotated[str, BeforeValidator(as_text)]], Field(min_length=1)]


class LabelColumns(Strict):
    """The label, which becomes 0 or 1.

    Attributes:
        names: The column.
        positive: The values that mean a click, which becomes 1. Null if the column has 0 and 1, or
            true and false.
        negative: The values that mean no click, which becomes 0; null if `positive` is.
    """

    kind: Literal["label"]
    names: Annotated[list[str], Field(min_length=1, max_length=1)]
    # Left out of a dump where they are null: a schema without them has the same hash as ever.
    positive: ListedValues | None = Field(default=None, exclude_if=is_none)
    negative: ListedValues | None = Field(default=None, exclude_if=is_none)

    @model_validator(mode="after")
    def _both_or_neither(self) -> "LabelColumns":
        if (self.positive is None) != (self.negative is None):
            missing = "positive" if self.positive is None else "negative"
            raise ValueError(f"{missing} is missing: list the values of both, or of neither")
        positive, negative = self.positive or [], self.negative or []
        for value in positive:
            if value in negative or find_number(value, negative) is not None:
                raise ValueError(f"{value!r} is in positive and in negative; remove one of them")
        return self


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


# A base class: in a class with a field `list`, the annotation `list[str]` would mean the field.
class NamedColumns(Strict):
    """A group of columns.

    Attributes:
        names: The columns.
    """

    names: list[str]


class CategoricalColumns(NamedColumns):
    """Columns of values that are only compared with one another.

    Attributes:
        parse: What the values are: up to eight hex digits, integers, or any text. The text of an
            integer is its digits, that of a boolean `true` or `false`, and that of a UUID its
            digits in small letters with hyphens.
        policy: The policy of the features, one for each column.
        list: How lists are read and pooled, if each row has several values; else null.
        table: The embedding table, and so the vocabulary, that all columns with this name have
            together; null gives each column a table of its own.
    """

    kind: Literal["categorical"]
    parse: Literal["hex32", "integer", "string"]
    policy: AnyPolicy
    # Left out of a dump where they are null: a schema without them has the same hash as ever.
    list: ListOptions | None = Field(default=None, exclude_if=is_none)
    table: str | None = Field(default=None, exclude_if=is_none)


class WeightsColumns(Strict):
    """Columns of the weights of the values of lists: a list of numbers in each row."""

    kind: Literal["weights"]
    names: list[str]


class SampleWeightColumn(Strict):
    """The weight of each row in the loss and in the metrics: 0, or from 1e-30 to 1e30."""

    kind: Literal["sample_weight"]
    names: Annotated[list[str], Field(min_length=1, max_length=1)]


class TimeColumns(Strict):
    """Columns of points in time, which derived features are made from.

    Attributes:
        names: The columns.
        parse: How they are written: a pattern as of strftime (`%y%m%d%H`), `iso8601`, or the unit
            since 1970: `unix` (seconds), `unix_ms`, `unix_us` or `unix_ns`.
        zone: The time zone of the times that have no offset of their own, by its IANA name
            (`Europe/Berlin`); null if they are in UTC.
        row_time: Whether they are the times of the rows, by which the order of the log is checked.
            False for other times, such as that of a sign-up.
    """

    kind: Literal["time"]
    names: list[str]
    parse: Annotated[str, Field(max_length=100)]
    zone: Annotated[str, Field(max_length=100)] | None = Field(default=None, exclude_if=is_none)
    row_time: bool = Field(default=True, exclude_if=bool)

    @model_validator(mode="after")
    def _can_be_read(self) -> "TimeColumns":
        if fault := time_parse_fault(self.parse, self.zone):
            raise ValueError(fault)
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
        if not is_time_zone(zone):
            raise ValueError(f"{zone!r} is no time zone; give a name such as Europe/Berlin")
        return zone


Names = list[str]  # for annotations in the class below, whose field `list` hides the type


@dataclass(frozen=True)
class Feature:
    """One input of the model.

    Attributes:
        name: The name of the feature.
        of: The columns that it is made from.
        transform: The transform that makes it; None if the values of a categorical column are taken
            as they are.
        policy: The policy of a categorical feature; None for a dense feature.
        list: How lists are pooled, of a feature with several values in each row; else None.
        table: The name of a categorical feature's embedding table, and of its vocabulary; that of
            the feature, unless the schema lets features share one.
    """

    name: str
    of: Names
    transform: AnyTransform | None
    policy: Policy | None
    list: ListOptions | None
    table: str


Format = Annotated[TextFormat | JsonLinesFormat | ColumnarFormat, Field(discriminator="kind")]
Columns = Annotated[
    LabelColumns
    | DenseColumns
    | CategoricalColumns
    | WeightsColumns
    | SampleWeightColumn
    | TimeColumns
    | IgnoredColumns,
    Field(discriminator="kind"),
]

Partitions = Mapping[str, str | None]
"""The values of the columns that are not in a log's files, because the files' folders give them.

`hour=07/part-0.parquet` has the column `hour`, as text; None is null.
"""


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
    days: DayColumn | None = Field(default=None, exclude_if=is_none)
    sample: SampleLog | None = None

    @property
    def names(self) -> list[str]:
        """The names of all columns of the log, in file order."""
        return [name for group in self.columns for name in group.names]

    def log_columns(self, *, labelled: bool) -> list[str]:
        """Return the names of the columns of a labelled or an unlabelled log, in file order.

        An unlabelled log has no sample weights either.
        """
        return [
            name for name in self.names if labelled or name not in (self.label, self.sample_weight)
        ]

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
    def row_times(self) -> list[str]:
        """The names of the time columns that are the times of the rows, in file order."""
        groups = (group for group in self.columns if isinstance(group, TimeColumns))
        return [name for group in groups if group.row_time for name in group.names]

    @property
    def weights(self) -> list[str]:
        """The names of the columns of weights of lists, in file order."""
        return self._names_of_kind("weights")

    @property
    def sample_weight(self) -> str | None:
        """The name of the column of sample weights; None if there is none."""
        return next(iter(self._names_of_kind("sample_weight")), None)

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
                    Feature(name, [name], group.transform, group.policy, None, name)
                    for name in group.names
                ]
            elif isinstance(group, CategoricalColumns):
                features += [
                    Feature(name, [name], None, group.policy, group.list, group.table or name)
                    for name in group.names
                ]
        features += [
            Feature(one.name, one.of, one.transform, one.policy, None, one.name)
            for one in self.derived
        ]
        return features

    @property
    def dense_features(self) -> list[str]:
        """The names of the N dense features."""
        return [feature.name for feature in self.features if feature.policy is None]

    @property
    def categorical_features(self) -> list[str]:
        """The names of all categorical features, with one value or several in each row."""
        return [feature.name for feature in self.features if feature.policy is not None]

    @property
    def single_valued_features(self) -> list[str]:
        """The names of the F categorical features with one value in each row."""
        return [
            feature.name
            for feature in self.features
            if feature.policy is not None and feature.list is None
        ]

    @property
    def list_features(self) -> list[Feature]:
        """The categorical features with several values in each row."""
        return [feature for feature in self.features if feature.list is not None]

    @property
    def tables(self) -> dict[str, list[str]]:
        """The categorical features of each embedding table, in order of first appearance."""
        tables: dict[str, list[str]] = {}
        for feature in self.features:
            if feature.policy is not None:
                tables.setdefault(feature.table, []).append(feature.name)
        return tables

    @property
    def policies(self) -> dict[str, Policy]:
        """The policy of each categorical feature, by the feature's name."""
        return {
            feature.name: feature.policy for feature in self.features if feature.policy is not None
        }

    @cached_property
    def file_names(self) -> dict[str, str]:
        """The names of the files about each feature and each embedding table, without an ending."""
        return file_names({feature.name: None for feature in self.features} | self.tables)

    @cached_property
    def table_of(self) -> dict[str, str]:
        """The embedding table of each categorical feature, by the feature's name."""
        return {name: table for table, names in self.tables.items() for name in names}

    def policy_of_table(self, table: str) -> Policy:
        """Return the policy that all features of an embedding table have."""
        return self.policies[self.tables[table][0]]

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

    def without(self, names: Container[str]) -> "Schema":
        """Return the schema of a log that lacks some columns, because its folders give them.

        Text with a header may have them all the same. They are ignored there, as they are in JSON
        lines and in columnar files.

        Args:
            names: The names. The label is not left out; it is in the files, or unknown.
        """
        given = [name for name in self.names if name in names and name != self.label]
        if not given:
            return self
        columns = []
        for group in self.columns:
            kept = [name for name in group.names if name not in given]
            if kept:
                columns.append(group.model_copy(update={"names": kept}))
        if isinstance(self.format, TextFormat) and self.format.header:
            columns.append(IgnoredColumns(kind="ignored", names=given))
        return self.model_copy(update={"columns": columns})

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
    faults = [*_column_faults(schema), *list_faults(schema)]
    kind_of: dict[str, str] = {name: group.kind for group in schema.columns for name in group.names}
    kind_of |= {feature.name: "list" for feature in schema.list_features}
    for feature in schema.features:
        faults += _transform_faults(feature, kind_of)
    if faults:
        raise ConfigError("\n".join(f"{path}: {one_line(fault)}" for fault in faults))
    if schema.sample:
        faults = _faults_for_sample(schema)
        lists = [feature.name for feature in schema.list_features]
        faults += sample_faults(schema.sample, schema.dense, schema.categorical, lists)
        if faults:
            raise ConfigError("\n".join(f"{path}: sample: {one_line(fault)}" for fault in faults))
    return schema


def _column_faults(schema: Schema) -> list[str]:
    faults = []
    names = [*schema.names, *(one.name for one in schema.derived)]
    tables = [table for table in schema.tables if table not in names]
    duplicates = sorted(name for name, count in Counter(names).items() if count > 1)
    if duplicates:
        faults.append(f"column named twice: {', '.join(duplicates)}")
    kinds = [group.kind for group in schema.columns]
    if kinds.count("label") != 1:
        faults.append(f"one label expected, found {kinds}")
    if kinds.count("sample_weight") > 1:
        faults.append(f"one column of sample weights at most expected, found {kinds}")
    if not schema.categorical_features or len(schema.features) < 2:
        features = [feature.name for feature in schema.features]
        faults.append(f"two features at least expected, one of them categorical, found {features}")
    if schema.days and schema.days.column not in schema.time:
        faults.append(f"days: {shorten(schema.days.column)} is no time column")
    others = [*names[len(schema.names) :], *tables]
    used = [*(name for name in schema.names if name in schema.used), *others]
    faults += [f"{shorten(name)}: {fault}" for name in used if (fault := name_fault(name))]
    return faults


def name_fault(name: str) -> str | None:
    """Return why a column of this name can only be ignored; None if it can be used."""
    remedy = "such a column can be ignored only; give it another name in the log to use it"
    if not name:
        return f"an empty name; {remedy}"
    if name == "*" or (name.startswith("^") and name.endswith("$")):
        return f"a name that means other columns to Polars; {remedy}"
    if not all(each.isprintable() or unicodedata.category(each) == "Zs" for each in name):
        return f"a name with characters that cannot be printed; {remedy}"
    return None


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
    faults += [
        f"columns of kind {group.kind} ({', '.join(group.names)}) cannot be generated"
        for group in schema.columns
        if not isinstance(group, LabelColumns | DenseColumns | CategoricalColumns)
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
