"""The ingested log as days of rows: where each day's rows stand, and how to read them lazily."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from features.encode.split import TRAIN, SplitOf, day_bounds
from features.ingest.shard import Shard
from features.ingest.stage import PARQUET

ROW_GROUP_ROWS = 65_536  # of the files of features


@dataclass(frozen=True)
class Day:
    """Rows start .. end (exclusive) of a shard. name: the log file's, or its and the day's number where one file holds all days."""

    name: str
    shard: Path
    sha256: str
    start: int
    end: int

    @property
    def num_rows(self) -> int:
        return self.end - self.start

    def rows(self, start: int, end: int) -> pl.LazyFrame:
        """Raw typed rows start .. end of this day."""
        return pl.scan_parquet(self.shard).slice(self.start + start, end - start)


def read_days(shards: list[Shard], num_days: int, root: Path) -> list[Day]:
    """The days of the log in time order: a file each, or num_days parts of the only file."""
    bounds = day_bounds([shard.num_rows for shard in shards], num_days)
    if len(shards) == 1:
        shard = shards[0]
        path = root / PARQUET / shard.parquet
        return [
            Day(f"{shard.name} day {k}", path, shard.parquet_sha256, *ends)
            for k, ends in enumerate(pairwise(bounds))
        ]
    return [
        Day(shard.name, root / PARQUET / shard.parquet, shard.parquet_sha256, 0, shard.num_rows)
        for shard in shards
    ]


def bounds_of(days: list[Day]) -> list[int]:
    """Row positions in the log where days begin, and the end of the last."""
    return [0, *np.cumsum([day.num_rows for day in days]).tolist()]


def split_rows(
    days: list[Day], split: int, split_of: SplitOf
) -> Iterator[tuple[int, pl.DataFrame]]:
    """(day, raw typed rows) of one split, in log order: piece by piece what stands in the row groups of features/SPLIT/day_NNN.parquet."""
    for k, day in enumerate(days):
        wanted = split_of(k) == split
        places = np.flatnonzero(wanted)
        for first in range(0, len(places), ROW_GROUP_ROWS):
            piece = places[first : first + ROW_GROUP_ROWS]
            start, end = int(piece[0]), int(piece[-1]) + 1
            yield k, day.rows(start, end).filter(pl.Series(wanted[start:end])).collect()


def train_rows(
    days: list[Day], wanted: list[int], split_of: SplitOf, first: int = 0
) -> pl.LazyFrame:
    """The training rows of the days whose numbers are wanted, in log order; of each day those from row `first` on."""
    parts: list[pl.LazyFrame] = []
    joined: tuple[Path, int, int] | None = None
    for k in wanted:
        day, codes = days[k], split_of(k)
        places = np.flatnonzero(codes[first:] == TRAIN) + first
        if not len(places):
            continue
        start, end = int(places[0]), int(places[-1]) + 1
        if end - start > len(places):  # folds: not in one piece
            parts.append(day.rows(start, end).filter(pl.Series(codes[start:end] == TRAIN)))
            joined = None
        elif joined and parts and joined[0] == day.shard and joined[2] == day.start + start:
            joined = (
                day.shard,
                joined[1],
                day.start + end,
            )  # days of one file are read as one stretch
            parts[-1] = pl.scan_parquet(day.shard).slice(joined[1], joined[2] - joined[1])
        else:
            joined = (day.shard, day.start + start, day.start + end)
            parts.append(day.rows(start, end))
    return pl.concat(parts)
