"""A dataset is a declaration: one YAML file says what the columns of its log are, and everything else is derived from it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from features.params import ConfigError, Strict, check, read_yaml

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


Columns = Annotated[LabelColumns | DenseColumns | CategoricalColumns, Field(discriminator="kind")]


class Schema(Strict):
    """Groups of columns in file order. F categorical and N dense columns: their counts come from here and nowhere else."""

    format: Format
    columns: list[Columns]

    @property
    def names(self) -> list[str]:
        """Every column in file order."""
        return [name for group in self.columns for name in group.names]

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
    return schema
