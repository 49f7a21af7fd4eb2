"""The days of the ingested log, and readers of their typed rows."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import polars as pl

from common.artifact import Artifact
from common.natural_order import natural_order_key
from features.encode.split import TRAIN, SplitOfDay, day_bounds
from features.encode.stretches import Stretch, scan_stretches
from features.ingest.shard import Shard

ROW_GROUP_ROWS = 65_536  # rows of a row group in the files of encoded rows


@dataclass(frozen=True)
class Part:
    """The rows `start` to `end` (exclusive) of a shard.

    Attributes:
        shard: The name of the shard in artifacts/parquet.
        sha256: The SHA-256 of the shard, in hex.
        shard_rows: The number of all rows of the shard.
        start: The first row.
        end: The row after the last.
    """

    shard: str
    sha256: str
    shard_rows: int
    start: int
    end: int

    @property
    def num_rows(self) -> int:
        """Number of rows of the part."""
        return self.end - self.start


@dataclass(frozen=True)
class Day:
    """One day of the log: the rows of one part or of several parts, one after the other.

    Attributes:
        name: The name of the day: that of its log file, with the day's number where one file
            contains all days; or the day itself, where the log says of which day its rows are.
        parquet: artifacts/parquet.
        parts: The parts.
        is_dated: Whether the log says of which day the rows are. Another day may then have equal
            rows.
    """

    name: str
    parquet: Artifact
    parts: tuple[Part, ...]
    is_dated: bool = False

    @cached_property
    def num_rows(self) -> int:
        """Number of rows of the day."""
        return sum(part.num_rows for part in self.parts)

    @cached_property
    def sha256(self) -> str:
        """A hash of what the rows depend on: the shards, and the place of the rows in them.

        A file of rows that are known under another name is the same day; a date is not.
        """
        parts = [(part.sha256, part.start, part.end) for part in self.parts]
        inputs = [self.name if self.is_dated else None, parts]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()

    def stretches(self, start: int, end: int) -> Iterator[Stretch]:
        """Yield where the rows `start` to `end` (exclusive) of this day are.

        If there are no rows, the only stretch is an empty one.
        """
        if start >= end:
            yield self._stretch(self.parts[0], 0, 0)
        for part in self.parts:
            first, last = max(start, 0), min(end, part.num_rows)
            if first < last:
                yield self._stretch(part, first, last)
            start, end = start - part.num_rows, end - part.num_rows

    def _stretch(self, part: Part, first: int, last: int) -> Stretch:
        shard = self.parquet.path(part.shard)
        return Stretch(shard, part.shard_rows, part.start + first, part.start + last)

    def cut(self, start: int, end: int) -> "Day":
        """Return the rows `start` to `end` (exclusive) of this day as a day.

        It knows only the shards that contain these rows.
        """
        parts = []
        for part in self.parts:
            first, last = max(start, 0), min(end, part.num_rows)
            if first < last:
                parts.append(replace(part, start=part.start + first, end=part.start + last))
            start, end = start - part.num_rows, end - part.num_rows
        if not parts:
            parts = [replace(self.parts[0], end=self.parts[0].start)]
        listed = {part.shard: self.parquet.files[part.shard] for part in parts}
        parquet = Artifact(self.parquet.folder.absolute(), listed, {})
        return replace(self, parquet=parquet, parts=tuple(parts))

    def rows(self, start: int, end: int) -> pl.LazyFrame:
        """Read the typed rows `start` to `end` (exclusive) of this day."""
        return scan_stretches(self.stretches(start, end))

    def all_rows(self) -> pl.LazyFrame:
        """Read all typed rows of this day."""
        return self.rows(0, self.num_rows)


def read_days(parquet: Artifact, shards: list[Shard], num_days: int) -> list[Day]:
    """Return the days of the log in time order.

    Where the log says of which days its rows are (`Shard.days`), the rows of one day from all
    shards are one day, and the days are in the natural order of their names. Otherwise, each shard
    is a day, and a single shard is cut into days.

    Args:
        parquet: artifacts/parquet.
        shards: The shards of the log, in time order.
        num_days: The number of days that a single shard is cut into.
    """
    if any(shard.days is not None for shard in shards):
        return _days_that_shards_name(parquet, shards)
    if len(shards) > 1:
        return [Day(shard.name, parquet, (_part(shard, 0, shard.num_rows),)) for shard in shards]
    (shard,) = shards
    bounds = day_bounds([shard.num_rows], num_days)
    return [
        Day(f"{shard.name} day {k}", parquet, (_part(shard, start, end),))
        for k, (start, end) in enumerate(pairwise(bounds))
    ]


def _days_that_shards_name(parquet: Artifact, shards: list[Shard]) -> list[Day]:
    parts: dict[str, list[Part]] = {}
    for shard in shards:
        start = 0
        for name, num_rows in (shard.days or {}).items():
            parts.setdefault(name, []).append(_part(shard, start, start + num_rows))
            start += num_rows
    names = sorted(parts, key=natural_order_key)
    return [Day(name, parquet, tuple(parts[name]), is_dated=True) for name in names]


def _part(shard: Shard, start: int, end: int) -> Part:
    return Part(shard.parquet, shard.parquet_sha256, shard.num_rows, start, end)


def bounds_of(days: list[Day]) -> list[int]:
    """Return the positions in the log where days begin, and the end of the last day."""
    return [0, *np.cumsum([day.num_rows for day in days]).tolist()]


def rows_of_days(days: list[Day]) -> pl.LazyFrame:
    """Read the typed rows of days, one day after the other."""
    return scan_stretches(stretch for day in days for stretch in day.stretches(0, day.num_rows))


def read_split(
    days: list[Day], split: int, split_of_day: SplitOfDay
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Read the typed rows of one split, in log order.

    Yields:
        The number of a day, and up to ROW_GROUP_ROWS of its rows: those of a row group of the
        encoded file of this day and split.
    """
    for k, day in enumerate(days):
        in_split = split_of_day(k) == split
        rows_of_split = np.flatnonzero(in_split)
        for first in range(0, len(rows_of_split), ROW_GROUP_ROWS):
            group = rows_of_split[first : first + ROW_GROUP_ROWS]
            start, end = int(group[0]), int(group[-1]) + 1
            yield k, day.rows(start, end).filter(pl.Series(in_split[start:end])).collect()


def train_rows(days: list[Day], day_numbers: list[int], split_of_day: SplitOfDay) -> pl.LazyFrame:
    """Read the typed training rows of some days, in log order.

    Args:
        days: All days of the log.
        day_numbers: The days to read, as indices into `days`.
        split_of_day: The split of each row of a day.
    """
    stretches: list[Stretch] = []
    for k in day_numbers:
        day, codes = days[k], split_of_day(k)
        rows = np.flatnonzero(codes == TRAIN)
        if not len(rows):
            continue
        start, end = int(rows[0]), int(rows[-1]) + 1
        is_train = codes[start:end] == TRAIN
        has_gaps = not is_train.all()  # as a day of folds has
        for stretch in day.stretches(start, end):
            num_rows = stretch.end - stretch.start
            mask, is_train = is_train[:num_rows], is_train[num_rows:]
            stretches.append(replace(stretch, mask=mask) if has_gaps else stretch)
    return scan_stretches(stretches)
