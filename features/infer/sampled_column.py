"""A column of the sampled rows, and whether a reader could read it as a kind of column."""

from dataclasses import dataclass, replace
from functools import cached_property

import polars as pl

from features.ingest.readers.column_types import Column
from features.ingest.readers.json_lines import ACCEPTED_TYPES
from features.ingest.readers.row_validation import replace_null_tokens
from features.schema.time_parses import ISO8601

VALUE = "value"  # the name of each series: that of a column may mean others to Polars
FRACTION = r"[.eE]"


@dataclass(frozen=True)
class SampledColumn:
    """The values of a column in the sampled rows.

    Attributes:
        name: The name of the column.
        values: The values, in the dtype that the reader of the format gives them: text in text logs
            and JSON lines. Missing ones are null. The series is called VALUE.
        json_types: The types of the values in JSON lines: `number`, `string`, `boolean`, `list`,
            `object` and others; None in other formats.
        item_types: The types of the values in the lists of JSON lines, if all values are lists.
        in_path: Whether it is a partition, whose values are in the paths of the files.
    """

    name: str
    values: pl.Series
    json_types: frozenset[str] | None = None
    in_path: bool = False
    item_types: frozenset[str] | None = None

    @cached_property
    def present(self) -> pl.Series:
        """The values that are not missing."""
        return self.values.drop_nulls()

    @property
    def missing_share(self) -> float:
        """The share of missing values."""
        return self.values.null_count() / max(len(self.values), 1)

    @cached_property
    def num_distinct(self) -> int:
        """The number of distinct values."""
        return len(self.present) if self.is_nested else self.present.n_unique()

    @property
    def is_nested(self) -> bool:
        """Whether its values are lists, objects, or of another dtype that no column can have."""
        if self.json_types is not None:
            return not self.json_types <= {"number", "string", "boolean"}
        return self.values.dtype.is_nested() or self.values.dtype in (
            pl.Binary,
            pl.Object,
            pl.Duration,
            pl.Time,
        )

    @property
    def is_list(self) -> bool:
        """Whether its values are lists."""
        return isinstance(self.values.dtype, pl.List) and self.json_types in (None, {"list"})

    @property
    def is_text(self) -> bool:
        """Whether its values are texts in the log."""
        if self.json_types is not None:
            return self.json_types == {"string"}
        return self.values.dtype == pl.String

    @property
    def is_temporal(self) -> bool:
        """Whether its dtype is a date or a time stamp."""
        return self.values.dtype == pl.Date or isinstance(self.values.dtype, pl.Datetime)

    @property
    def is_boolean(self) -> bool:
        """Whether its values are booleans in the log."""
        return self.json_types == frozenset(["boolean"]) or self.values.dtype == pl.Boolean

    def texts(self) -> pl.Series:
        """Return the values that are not missing as text, as a message would show them."""
        return self.present.cast(pl.String, strict=False).drop_nulls()

    def fits(self, kind: str, parse: str = "") -> bool:
        """Return whether a reader would read each value as one of a kind of column.

        Args:
            kind: The kind, as of `Column`.
            parse: How a time is written; empty for the other kinds.
        """
        column = Column(VALUE, kind, parse)
        if self.json_types is not None:
            accepted = ("string",) if parse == ISO8601 else ACCEPTED_TYPES[kind]
            if not self.json_types <= {*accepted}:
                return False
            has_number = "number" in self.json_types
            if kind == "string" and has_number and self.texts().str.contains(FRACTION).any():
                return False
        elif self.is_nested or column.conversion_from(self.values.dtype) is None:
            return False
        return self.convert(kind, parse).null_count() == self.values.null_count()

    def convert(self, kind: str, parse: str = "") -> pl.Series:
        """Convert the values as a reader does; what cannot be converted is null."""
        conversion = Column(VALUE, kind, parse).conversion_from(self.values.dtype)
        assert conversion is not None
        return self.values.to_frame().select(conversion).to_series()

    def without_tokens(self, null_tokens: list[str]) -> "SampledColumn":
        """Return the column with the values that mean a missing value as nulls."""
        if self.is_nested:
            return self
        values = replace_null_tokens(self.values.to_frame(), null_tokens).to_series()
        return replace(self, values=values)
