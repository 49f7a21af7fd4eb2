"""Stretches: consecutive rows of a shard. Those of many shards are read by one scan.

A plan of many scans, each with a slice, takes Polars a time that is quadratic in their number: 9 s
for the shards of a thousand small log files. One scan of all the files takes 0.3 s.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.parquet import scan_parquet

# Rows between two stretches that are read and left out, so that one scan reads both. Parquet
# decodes about this number of rows in the time that one more scan takes.
MAX_GAP = 1 << 12


@dataclass(frozen=True)
class Stretch:
    """The rows `start` to `end` (exclusive) of a shard, or those of them that a mask selects.

    Attributes:
        shard: The path of the shard.
        shard_rows: The number of all its rows.
        start: The first row.
        end: The row after the last.
        mask: Whether each of these rows is selected, (end - start,); None: all are.
    """

    shard: Path
    shard_rows: int
    start: int
    end: int
    mask: NDArray[np.bool_] | None = None


def scan_stretches(stretches: Iterable[Stretch]) -> pl.LazyFrame:
    """Read the rows of stretches lazily, in this order. There is at least one stretch."""
    runs: list[_Run] = []
    for stretch in stretches:
        if not runs or not runs[-1].append(stretch):
            runs.append(_Run(stretch))
    return pl.concat([run.scan() for run in runs])


class _Run:
    """Stretches that one scan reads.

    Args:
        first: The first stretch.
    """

    def __init__(self, first: Stretch) -> None:
        self.start, self.last = first.start, first
        self.shards = [first.shard]
        self.num_rows = 0
        self.masks: list[tuple[int, NDArray[Any] | bool]] = []  # a number of rows and their mask
        self._add(first.end - first.start, first.mask)

    def append(self, stretch: Stretch) -> bool:
        """Append a stretch if few rows lie between it and the last one; return whether they do."""
        in_same_shard = stretch.shard == self.last.shard and stretch.start >= self.last.end
        left = 0 if in_same_shard else self.last.shard_rows
        gap = left + stretch.start - self.last.end
        if gap > MAX_GAP:
            return False
        if not in_same_shard:
            self.shards.append(stretch.shard)
        self._add(gap, False)
        self._add(stretch.end - stretch.start, stretch.mask)
        self.last = stretch
        return True

    def _add(self, num_rows: int, mask: NDArray[Any] | bool | None) -> None:
        self.num_rows += num_rows
        self.masks.append((num_rows, True if mask is None else mask))

    def scan(self) -> pl.LazyFrame:
        """Read the rows lazily."""
        rows = scan_parquet(self.shards).slice(self.start, self.num_rows)
        if all(mask is True for num_rows, mask in self.masks if num_rows):
            return rows
        is_selected = [np.broadcast_to(mask, num_rows) for num_rows, mask in self.masks]
        return rows.filter(pl.Series(np.concatenate(is_selected)))
