"""A dataset is a declaration: one YAML file says what the columns of its log are, and everything else is derived from it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from features.params import ConfigError, Fraction, Positive, Rate, Strict, check, read_yaml

SCHEMAS = Path(__file__).parent / "schemas"


class Format(Strict):
    separator: Annotated[str, Field(min_length=1, max_length=1)]
    header: bool
    null_tokens: list[str]


class LabelColumns(Strict):
    kind: Literal["label"]
    names: Annotated[list[str], Field(min_length=1, max_length=1)]


class DenseColumns(Strict):
    kind: Literal["dense"]
    names: list[str]
    parse: Literal["integer"]
    transform: Literal["log1p"]


class CategoricalColumns(Strict):
    kind: Literal["categorical"]
    names: list[str]
    parse: Literal["hex32"]
    policy: Literal["vocabulary"]


class Missing(Strict):
    """Columns that are null together, in this share of the rows."""

    share: Fraction
    columns: list[str]


class PowerLaw(Strict):
    """A categorical column: the value of rank r (0, 1, …) has a share of about (r + offset)^-exponent, r < values."""

    values: Positive
    exponent: Rate
    offset: Rate


class Signal(Strict):
    """Standard deviations, in logits, of what the planted signal is made of; pairs: the columns that interact."""

    dense: Rate
    categorical: Rate
    interactions: Rate
    pairs: list[list[str]]


class SampleLog(Strict):
    """What the sample log generator imitates. Read by features/sample.py alone.

    drift: how far the popularity of a common value swings over the days, in logs; daily_new: share of the rarer values replaced each day.
    quantiles: dense column -> its quantiles at `levels`, from 0 to 1.
    """

    label_rate: Annotated[float, Field(gt=0, lt=1)]
    drift: Fraction
    daily_new: Fraction
    signal: Signal
    missing: list[Missing]
    levels: list[Fraction]
    quantiles: dict[str, list[int]]
    popularity: dict[str, PowerLaw]


Columns = Annotated[LabelColumns | DenseColumns | CategoricalColumns, Field(discriminator="kind")]


class Schema(Strict):
    """Groups of columns in file order. F categorical and N dense columns: their counts come from here and nowhere else."""

    format: Format
    columns: list[Columns]
    sample: SampleLog | None = None

    @property
    def names(self) -> list[str]:
        """Every column in file order."""
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

    def _of(self, kind: str) -> list[str]:
        return [name for group in self.columns if group.kind == kind for name in group.names]


def load_schema(name: str) -> Schema:
    """features/schemas/NAME.yaml, checked. Raises ConfigError for an unknown name or an impossible declaration."""
    known = sorted(path.stem for path in SCHEMAS.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"data.schema: {name!r} is no schema; known: {', '.join(known)} (features/schemas/NAME.yaml)")
    path = SCHEMAS / f"{name}.yaml"
    return check_schema(check(Schema, read_yaml(path), path), path)


def check_schema(schema: Schema, path: Path) -> Schema:
    """One label, at least one dense and one categorical column, no name twice."""
    names = schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    kinds = [group.kind for group in schema.columns]
    if twice:
        raise ConfigError(f"{path}: column named twice: {', '.join(twice)}")
    if kinds.count("label") != 1 or not schema.dense or not schema.categorical:
        raise ConfigError(f"{path}: one label, and at least one dense and one categorical column expected, found {kinds}")
    if schema.sample:
        _check_sample(schema, schema.sample, path)
    return schema


def _check_sample(schema: Schema, sample: SampleLog, path: Path) -> None:
    """Every column has its law and no other column is named; the laws are laws."""
    known = {*schema.dense, *schema.categorical}
    named = [name for group in [*(entry.columns for entry in sample.missing), *sample.signal.pairs] for name in group]
    faults = [f"{name} is no dense or categorical column" for name in sorted({*named} - known)]
    faults += [f"quantiles: {name} expected or not known" for name in sorted({*schema.dense} ^ {*sample.quantiles})]
    faults += [f"popularity: {name} expected or not known" for name in sorted({*schema.categorical} ^ {*sample.popularity})]
    faults += [f"signal.pairs: two columns expected, found {pair}" for pair in sample.signal.pairs if len(pair) != 2]
    faults += [
        f"popularity.{name}.exponent: 1 has no closed form; use 1.01" for name, law in sample.popularity.items() if law.exponent == 1
    ]
    levels = sample.levels
    if len(levels) < 2 or levels[0] != 0 or levels[-1] != 1 or sorted({*levels}) != levels:
        faults.append(f"levels: 0, …, 1 in rising order expected, found {levels}")
    faults += [
        f"quantiles.{name}: {len(levels)} rising values expected, found {values}"
        for name, values in sample.quantiles.items()
        if len(values) != len(levels) or sorted(values) != values
    ]
    if faults:
        raise ConfigError("\n".join(f"{path}: sample: {fault}" for fault in faults))
