"""The check of a whole log against a schema: what is in its columns, and which rows are bad.

The log is read piece by piece, so memory is bounded: for each column at most MAX_DISTINCT values
are remembered, as hashes of 64 bits.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.progress import Progress
from features.infer.guess import MIN_VALUES, NEARLY_ALL
from features.infer.log_files import LogFile, read_file
from features.ingest.day_order import day_of_row
from features.ingest.readers.column_types import columns_to_read
from features.ingest.readers.row_validation import ValidatedRows
from features.list_values import lengths_of, values_of
from features.schema.schema import Schema

MAX_DISTINCT = 1_000_000
MAX_REASONS = 1000
MAX_CUT_SHARE = 0.05  # if a larger share of the lists is cut, there is a warning
# The value in a reason, which is not part of its kind.
QUOTED_VALUE = re.compile(r": '.*' is not ", re.DOTALL)


@dataclass
class ListSummary:
    """The lengths of a column's lists.

    Attributes:
        max_length: The length to which lists are cut; None if the column contains weights.
        num_lists: The number of lists, empty ones included.
        num_values: The number of their values.
        shortest: The least length.
        longest: The greatest length.
        num_cut: The number of lists that are cut.
    """

    max_length: int | None
    num_lists: int = 0
    num_values: int = 0
    shortest: int = 0
    longest: int = 0
    num_cut: int = 0

    @property
    def cut_share(self) -> float:
        """The share of lists that are cut."""
        return self.num_cut / max(self.num_lists, 1)

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Add the lengths of some lists."""
        if not len(lengths):
            return
        least = int(lengths.min())
        self.shortest = min(self.shortest, least) if self.num_lists else least
        self.longest = max(self.longest, int(lengths.max()))
        self.num_lists += len(lengths)
        self.num_values += int(lengths.sum())
        if self.max_length is not None:
            self.num_cut += int((lengths > self.max_length).sum())


@dataclass
class ColumnSummary:
    """The counts and the range of the values of a column.

    Attributes:
        name: Its name.
        kind: Its kind in the schema.
        lists: The lengths of its lists; None if its rows have single values.
        num_values: The number of values that are not missing, also of those in lists.
        num_missing: The number of rows without a value or a list.
        low: The least number or time; None for other columns, or without a value.
        high: The greatest one.
    """

    name: str
    kind: str
    lists: ListSummary | None = None
    num_values: int = 0
    num_missing: int = 0
    low: Any = None
    high: Any = None
    # Hashes of the values, all of them distinct; None if there are too many.
    _known: NDArray[np.uint64] | None = field(default_factory=lambda: np.empty(0, np.uint64))
    _new: list[NDArray[np.uint64]] = field(default_factory=list)
    _distinct_share: float = 0.0  # when there were too many

    def add(self, values: pl.Series) -> None:
        """Add the values of a piece of the log."""
        self.num_missing += values.null_count()
        values = values.drop_nulls()
        if self.lists is not None:
            self.lists.add(lengths_of(values))
            values = values_of(values).drop_nulls()
        self.num_values += len(values)
        if not len(values):
            return
        if values.dtype.is_temporal() or self.kind in ("dense", "label"):
            low, high = values.min(), values.max()
            self.low = low if self.low is None else min(self.low, low)
            self.high = high if self.high is None else max(self.high, high)
        if self._known is not None:
            self._new.append(values.unique().hash().to_numpy())
            if sum(map(len, self._new)) > len(self._known):
                self._merge()

    @property
    def missing_share(self) -> float:
        """The share of rows without a value or a list."""
        num_present = self.num_values if self.lists is None else self.lists.num_lists
        return self.num_missing / max(self.num_missing + num_present, 1)

    @property
    def num_distinct(self) -> int | None:
        """The number of distinct values; None if it is over MAX_DISTINCT."""
        self._merge()
        return None if self._known is None else len(self._known)

    @property
    def is_nearly_distinct(self) -> bool:
        """Whether nearly all values are distinct, as far as they were counted."""
        distinct = self.num_distinct
        if distinct is None:
            return self._distinct_share >= NEARLY_ALL
        return self.num_values >= MIN_VALUES and distinct >= NEARLY_ALL * self.num_values

    def _merge(self) -> None:
        if self._known is None or not self._new:
            return
        self._known = np.unique(np.concatenate([self._known, *self._new]))
        self._new = []
        if len(self._known) > MAX_DISTINCT:
            self._distinct_share = len(self._known) / self.num_values
            self._known = None


@dataclass(frozen=True)
class FileSummary:
    """A file of the log: its name, its day by folders or its name, and its rows and bad rows."""

    name: str
    day: str
    num_rows: int
    num_bad_rows: int


@dataclass
class LogSummary:
    """The counts of a log: its files, columns, bad rows and days.

    Attributes:
        schema: Its schema.
        columns: Its columns that are not ignored, by name.
        files: Its files, in time order.
        reasons: How often a reason of bad rows occurs, without the values.
        examples: The first bad row of each reason: the file, the line, and the whole reason.
        num_clicks: The number of rows with the label 1.
        days: The number of good rows of each day, by its date; empty if each file is a day.
    """

    schema: Schema
    columns: dict[str, ColumnSummary]
    files: list[FileSummary] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    num_clicks: int = 0
    days: Counter[date] = field(default_factory=Counter)

    @property
    def num_rows(self) -> int:
        """The number of rows, good and bad."""
        return sum(file.num_rows for file in self.files)

    @property
    def num_bad_rows(self) -> int:
        """The number of bad rows."""
        return sum(file.num_bad_rows for file in self.files)

    @property
    def bad_fraction(self) -> float:
        """The share of bad rows."""
        return self.num_bad_rows / max(self.num_rows, 1)

    @property
    def label_rate(self) -> float:
        """The share of clicks in the good rows."""
        return self.num_clicks / max(self.num_rows - self.num_bad_rows, 1)

    def warnings(self) -> Iterator[str]:
        """Yield what is wrong with declared columns."""
        for column in self.columns.values():
            if column.kind == "label" and column.num_distinct == 1:
                yield f"{column.name}: the label is always {column.low}"
            elif column.num_values == 0:
                yield f"{column.name}: no value at all; declare it as ignored"
            elif column.num_distinct == 1:
                yield f"{column.name}: one value; declare it as ignored"
            elif column.kind == "categorical" and column.is_nearly_distinct:
                yield (
                    f"{column.name}: nearly all values are distinct; if it is an identifier, "
                    "declare it as ignored"
                )
            if column.lists is not None and column.lists.cut_share > MAX_CUT_SHARE:
                yield (
                    f"{column.name}: {column.lists.cut_share:.0%} of the lists have over "
                    f"{column.lists.max_length:,} values and are cut; is max_length too small?"
                )


def check_log(files: Sequence[LogFile], schema: Schema, short_rows: str) -> LogSummary:
    """Read a whole log and summarise it; nothing is written.

    Args:
        files: The files of the log, in time order.
        schema: Its schema.
        short_rows: As of `read_log`.

    Raises:
        DataError: A file cannot be read with the schema.
    """
    kinds = {name: group.kind for group in schema.columns for name in group.names}
    max_lengths = {one.name: one.list.max_length for one in schema.list_features if one.list}
    columns = {
        column.name: ColumnSummary(
            column.name,
            kinds[column.name],
            ListSummary(max_lengths.get(column.name)) if column.is_list else None,
        )
        for column in columns_to_read(schema, labelled=True)
    }
    summary = LogSummary(schema, columns)
    with Progress("check", None, None) as progress:
        for position, file in enumerate(files):
            num_rows = num_bad_rows = 0
            with file.at_hand() as path:
                num_bytes = max(path.stat().st_size, 1)
                for piece in read_file(file, path, schema, short_rows):
                    _add(summary, piece, file.name)
                    num_rows += piece.num_lines
                    num_bad_rows += piece.bad_rows.height
                    # As if all files had the same size.
                    share = (position + piece.bytes_read / num_bytes) / len(files)
                    rows = progress.num_rows + piece.num_lines
                    progress.total_rows = max(round(rows / share), rows) if share else None
                    progress.update(piece.num_lines)
            summary.files.append(
                FileSummary(file.name, file.found.day_name, num_rows, num_bad_rows)
            )
    return summary


def _add(summary: LogSummary, piece: ValidatedRows, file: str) -> None:
    for name, column in summary.columns.items():
        column.add(piece.rows[name])
    summary.num_clicks += int(piece.rows[summary.schema.label].sum())
    if summary.schema.days and piece.rows.height:
        counts = piece.rows.select(day_of_row(summary.schema.days)).to_series().value_counts()
        summary.days.update(dict(counts.iter_rows()))
    for line, reason in piece.bad_rows.select("line", "reason").iter_rows():
        kind = QUOTED_VALUE.sub(": a value is not ", reason)
        if kind in summary.reasons or len(summary.reasons) < MAX_REASONS:
            summary.reasons[kind] += 1
            summary.examples.setdefault(kind, f"{file} line {line:,}: {reason}")
