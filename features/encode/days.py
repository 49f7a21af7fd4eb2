"""The days of the ingested log, and readers of their typed rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from common.artifact import Artifact
from common.parquet import scan_parquet
from features.encode.split import TRAIN, SplitOfDay, day_bounds
from features.ingest.shard import Shard

ROW_GROUP_ROWS = 65_536  # rows of a row group in the files of encoded rows


@dataclass(frozen=True)
class Day:
    """One day of the log: the rows `start` to `end` (exclusive) of a shard.

    Attributes:
        name: The name of the log file, with the day's number where one file contains all days.
        parquet: artifacts/parquet.
        shard: The name of the shard in it.
        sha256: The SHA-256 of the shard, in hex.
        start: The first row.
        end: The row after the last.
    """

    name: str
    parquet: Artifact
    shard: str
    sha256: str
    start: int
    end: int

    @property
    def num_rows(self) -> int:
        """Number of rows of the day."""
        return self.end - self.start

    def rows(self, start: int, end: int) -> pl.LazyFrame:
        """Read the typed rows `start` to `end` (exclusive) of this day."""
        return scan_parquet(self.parquet.path(self.shard)).slice(self.start + start, end - start)

    def all_rows(self) -> pl.LazyFrame:
        """Read all typed rows of this day."""
        return self.rows(0, self.num_rows)


def read_days(parquet: Artifact, shards: list[Shard], num_days: int) -> list[Day]:
    """Return the days of the log in time order.

    Args:
        parquet: artifacts/parquet.
        shards: The shards of the log, in time order. Each is a day.
        num_days: The number of days that a single shard is cut into.
    """
    if len(shards) > 1:
        return [
            Day(shard.name, parquet, shard.parquet, shard.parquet_sha256, 0, shard.num_rows)
            for shard in shards
        ]
    (shard,) = shards
    bounds = day_bounds([shard.num_rows], num_days)
    return [
        Day(f"{shard.name} day {k}", parquet, shard.parquet, shard.parquet_sha256, start, end)
        for k, (start, end) in enumerate(pairwise(bounds))
    ]


def bounds_of(days: list[Day]) -> list[int]:
    """Return the positions in the log where days begin, and the end of the last day."""
    return [0, *np.cumsum([day.num_rows for day in days]).tolist()]


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


def train_rows(
    days: list[Day], day_numbers: list[int], split_of_day: SplitOfDay, first: int = 0
) -> pl.LazyFrame:
    """Read the typed training rows of some days, in log order.

    Args:
        days: All days of the log.
        day_numbers: The days to read, as indices into `days`.
        split_of_day: The split of each row of a day.
        first: The first row of each day to read.
    """
    stretches: list[_Stretch] = []
    for k in day_numbers:
        day, codes = days[k], split_of_day(k)
        rows = np.flatnonzero(codes[first:] == TRAIN) + first
        if not len(rows):
            continue
        start, end = int(rows[0]), int(rows[-1]) + 1
        has_gaps = end - start > len(rows)  # as a day of folds has
        mask = pl.Series(codes[start:end] == TRAIN) if has_gaps else None
        path = day.parquet.path(day.shard)
        stretch = _Stretch(path, day.start + start, day.start + end, mask)
        if stretches and stretches[-1].continues_with(stretch):
            last = stretches.pop()  # one large read is faster than one for each day
            stretch = _Stretch(last.shard, last.start, stretch.end, None)
        stretches.append(stretch)
    return pl.concat([stretch.rows() for stretch in stretches])


@dataclass(frozen=True)
class _Stretch:
    """Rows `start` to `end` of a shard, or those of them that the mask selects."""

    shard: Path
    start: int
    end: int
    mask: pl.Series | None

    def continues_with(self, other: "_Stretch") -> bool:
        both_whole = self.mask is None and other.mask is None
        return both_whole and (self.shard, self.end) == (other.shard, other.start)

    def rows(self) -> pl.LazyFrame:
        rows = scan_parquet(self.shard).slice(self.start, self.end - self.start)
        return rows if self.mask is None else rows.filter(self.mask)
