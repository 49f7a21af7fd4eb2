"""The jobs that add up counts of one table, and say which values its vocabulary gets.

The values of a large table are cut into ranges, with a job for each, so that no machine needs the
memory for the counts of a whole table.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from features.distributed.jobs import Job
from features.encode.table_counts import counts_writer, last_seen_of
from features.encode.vocabulary import grow_counts, newly_frequent
from features.value_counts import add_counts, as_one_day


@dataclass(frozen=True)
class Range:
    """The values from `low` up to, but without, `high`; None is no limit."""

    low: int | float | str | None = None
    high: int | float | str | None = None

    def read(self, file: pq.ParquetFile) -> pl.DataFrame:
        """Read the counts of these values from a file that is sorted by value."""
        groups = [
            number
            for number in range(file.num_row_groups)
            if self._overlaps(file.metadata.row_group(number).column(0).statistics)
        ]
        counts = pl.DataFrame(file.read_row_groups(groups))
        if self.low is not None:
            counts = counts.filter(pl.col("value") >= self.low)
        if self.high is not None:
            counts = counts.filter(pl.col("value") < self.high)
        return counts

    def _overlaps(self, statistics: "pq.Statistics | None") -> bool:
        if statistics is None or not statistics.has_min_max:
            return True
        ends_before = self.low is not None and statistics.max < self.low
        return not ends_before and (self.high is None or statistics.min < self.high)


@dataclass(frozen=True)
class CountedGroup:
    """The counts of days that were counted together.

    Attributes:
        files: Files of the exchange. Those of several days are one file; those of one day may be
            files of several parts of it.
        day_indices: The index of each day in the days that were counted.
    """

    files: list[str]
    day_indices: list[int]


@dataclass(frozen=True)
class MergedCounts:
    """The counts of a range of the values of a table.

    Attributes:
        new: The file of the exchange with the values that became frequent, as of `grow_counts`.
        counts: The file of the exchange with the counts of all values; None if they are not kept.
        num_distinct: The number of values in `counts`.
        last_seen: As of `last_seen_of`; empty if the counts are not kept.
    """

    new: str
    counts: str | None
    num_distinct: int
    last_seen: list[int]


@dataclass(frozen=True, kw_only=True)
class MergeCounts(Job):
    """Adds up counts of a range of the values of a table.

    Attributes:
        folder: The folder of the exchange for the result; no other job has the same.
        values: The range.
        before: The file of the exchange with the counts of all earlier days. None for the first
            fit, in which all days together are the first vocabulary version.
        groups: The counts of the days, in their order.
        keeps_counts: Whether the vocabulary grows later, so that its counts are kept.
        min_count: The number of occurrences that makes a value frequent.
        num_days: The number of days that were counted.
    """

    folder: str
    values: Range
    before: str | None
    groups: list[CountedGroup]
    keeps_counts: bool
    min_count: int
    num_days: int

    def work(self) -> MergedCounts:
        """Add up the counts, and write both files."""
        if self.before is None:
            counts = self._fit()
            new = newly_frequent(counts.clear(), as_one_day(counts), self.min_count)
        else:
            groups = ((self._counts_by_day(group), group.day_indices) for group in self.groups)
            new, counts = grow_counts(self._read(self.before), groups, self.min_count)
        last_seen = last_seen_of(counts, self.min_count, self.num_days) if self.keeps_counts else []
        return MergedCounts(
            self._put(new, "new"),
            self._put(counts, "counts") if self.keeps_counts else None,
            counts.height,
            last_seen,
        )

    def _fit(self) -> pl.DataFrame:
        of_files = []
        for group in self.groups:
            for name in group.files:
                counts = self._read(name)
                if self.keeps_counts:
                    (index,) = group.day_indices
                    counts = counts.with_columns(pl.lit(index, pl.UInt32).alias("last_day"))
                of_files.append(counts)
        return add_counts(of_files)

    def _counts_by_day(self, group: CountedGroup) -> pl.DataFrame:
        of_files = [self._read(name) for name in group.files]
        if len(of_files) == 1:
            return of_files[0]
        return as_one_day(add_counts([counts.select("value", "count") for counts in of_files]))

    def _read(self, name: str) -> pl.DataFrame:
        with self.exchange.open(name) as opened, pq.ParquetFile(opened) as file:
            return self.values.read(file)

    def _put(self, frame: pl.DataFrame, kind: str) -> str:
        name = f"{self.folder}/{kind}.parquet"
        with self.exchange.work_folder() as folder:
            with counts_writer(folder / "frame", frame.schema) as writer:
                writer.write(frame)
            self.exchange.put(folder / "frame", name)
        return name


@dataclass(frozen=True, kw_only=True)
class JoinCounts(Job):
    """Makes one file of the counts of all ranges of a table, whose memory is that of a range.

    Attributes:
        files: The files of the exchange with the counts, in the order of their values.
        name: The name of the new file.
    """

    files: list[str]
    name: str

    def work(self) -> str:
        """Write the file, and return its name."""
        with self.exchange.work_folder() as folder:
            frames = (self._read(name) for name in self.files)
            first = next(frames)
            with counts_writer(folder / "frame", first.schema) as writer:
                writer.write(first)
                for frame in frames:
                    writer.write(frame)
            self.exchange.put(folder / "frame", self.name)
        return self.name

    def _read(self, name: str) -> pl.DataFrame:
        with self.exchange.open(name) as opened, pq.ParquetFile(opened) as file:
            return Range().read(file)


def ranges_of(samples: list[tuple[int, pl.Series]], max_values: int) -> list[Range]:
    """Cut the values of a table into ranges of about equally many values.

    Args:
        samples: The number of distinct values of each file of counts, and a sorted sample of them.
        max_values: The number of values of a range, about; each file counts its own values.

    Returns:
        The ranges in the order of their values. Together they have all values.
    """
    num_ranges = -(-sum(num_values for num_values, _ in samples) // max_values)
    weighted = [
        pl.DataFrame({"value": sample}).with_columns(weight=pl.lit(num_values / len(sample)))
        for num_values, sample in samples
        if len(sample)
    ]
    if num_ranges <= 1 or not weighted:
        return [Range()]
    values = pl.concat(weighted).sort("value")
    shares = values["weight"].cum_sum() / values["weight"].sum()
    positions = shares.search_sorted(np.arange(1, num_ranges) / num_ranges)
    limits = values["value"].gather(positions).unique(maintain_order=True).to_list()
    return [Range(low, high) for low, high in zip([None, *limits], [*limits, None], strict=True)]
