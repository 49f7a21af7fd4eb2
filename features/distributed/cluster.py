"""The features stage on a cluster: it makes the jobs, and puts their results together.

The results are those of one machine, byte for byte, for any number of workers. This machine holds
the vocabularies, which the model needs anyway, but neither rows nor the counts of rare values.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from common.logs import get_logger
from features.dataset.writer import DayToEncode, WrittenDay
from features.distributed.count_days import CountDays, CountsFile
from features.distributed.encode_days import EncodeDays, PackedDay
from features.distributed.exchange import Exchange
from features.distributed.jobs import PackedCodes, RunJobs
from features.distributed.merge_counts import (
    CountedGroup,
    JoinCounts,
    MergeCounts,
    MergedCounts,
    ranges_of,
)
from features.encode.day_groups import NewDays
from features.encode.days import Day
from features.encode.feature_state import (
    FeatureState,
    dtype_of_table,
    fit_transform,
    values_to_fit,
)
from features.encode.split import TRAIN
from features.encode.table_counts import CountedTable, LocalCounter, counts_path
from features.encode.training_days import TrainingDays
from features.encode.vocabulary import sizes_after_days
from features.schema.schema import Feature, Schema

log = get_logger("features")

COUNTED_ROWS = 1 << 25  # rows of a day that a job counts
MERGED_VALUES = 1 << 24  # values that a job adds up, about
ENCODED_ROWS = 1 << 20  # days are encoded together up to this number of rows

# A sorted sample of the values in a file of counts, and how many values the file has.
Sample = tuple[int, pl.Series]


@dataclass(frozen=True)
class PartToCount:
    """The rows that one job counts.

    Attributes:
        days: The rows, as days.
        codes: As of `CountDays`.
        day_indices: The index of each day in the days that were counted.
    """

    days: list[Day]
    codes: PackedCodes | None
    day_indices: list[int]


@dataclass(frozen=True)
class CountedFiles:
    """The counts of a table, or of what a transform is fitted to, before they are added up.

    Attributes:
        groups: The files, by groups of days.
        samples: Samples of the values.
    """

    groups: list[CountedGroup]
    samples: list[Sample]


@dataclass(frozen=True)
class Cluster:
    """Does the work of the features stage in jobs. It is a `ValueCounter`, and writes days.

    Attributes:
        run_jobs: Runs the jobs.
        exchange: The place of the files of the jobs. All of it belongs to this run.
        counted_rows: The number of rows of a day that a job counts.
        merged_values: The number of values that a job adds up, about.
        encoded_rows: Days are encoded together up to this number of rows.
        phases: The numbers of the phases. Their files have names of their own, so that a late job
            of one phase never writes a file of another.
    """

    run_jobs: RunJobs
    exchange: Exchange
    counted_rows: int = COUNTED_ROWS
    merged_values: int = MERGED_VALUES
    encoded_rows: int = ENCODED_ROWS
    phases: Iterator[int] = field(default_factory=count)

    def fit_transforms(self, training: TrainingDays, days: list[int]) -> dict[str, pl.DataFrame]:
        """Fit the transforms to the counts of their values."""
        names = list(values_to_fit(training.schema))
        if not names:
            return {}
        counted = self._count(
            training, names, self._parts_to_fit(training, days), {}, for_transforms=True
        )
        merged = self._merge(training, counted, {}, len(days), keeps_counts=False, min_count=1)
        fitted = {}
        for name, of_ranges in merged.items():
            counts = self._read_new(of_ranges).sort("value")
            counts = counts.select("value", pl.col("total").alias("count"))
            fitted[name] = fit_transform(training.schema, name, counts)
        return fitted

    def fit(
        self,
        training: TrainingDays,
        fitted: dict[str, pl.DataFrame],
        days: list[int],
        directory: Path,
    ) -> dict[str, CountedTable]:
        """Count the values on the first days, and write the counts if the vocabularies grow.

        In the layout `appearance`, this machine counts: an id depends on the order of all rows.
        """
        if training.options.ids == "appearance":
            return LocalCounter().fit(training, fitted, days, directory)
        names = training.tables_with_vocabulary
        counted = self._count(training, names, self._parts_to_fit(training, days), fitted)
        merged = self._merge(
            training,
            counted,
            {},
            len(days),
            keeps_counts=training.can_grow,
            min_count=training.options.min_count,
        )

        def fit(feature: Feature) -> CountedTable:
            if training.is_hashed(feature):
                dtype = dtype_of_table(training.schema, feature.table, fitted)
                return CountedTable(pl.Series("value", dtype=dtype), None, [], None)
            of_ranges = merged[feature.table]
            values = self._read_new(of_ranges)["value"]
            return _counted_table(values, [], of_ranges, is_kept=training.can_grow)

        if training.can_grow:
            self._take_counts(training, merged, directory)
        return {feature.table: fit(feature) for feature in training.categorical}

    def grow(
        self,
        training: TrainingDays,
        state: FeatureState,
        new_days: NewDays,
        old: Path,
        directory: Path,
    ) -> dict[str, CountedTable]:
        """Add the counts of later days to those of the last run, and write the sums."""
        names = training.tables_with_vocabulary
        counted = self._count(training, names, self._new_parts(training, new_days), state.fitted)
        paths = {name: counts_path(old, training.schema, name) for name in names}
        merged = self._merge(
            training,
            counted,
            paths,
            new_days.num_counted,
            keeps_counts=True,
            min_count=training.options.min_count,
        )

        def grow(feature: Feature) -> CountedTable:
            values = state.vocabularies[feature.table]
            if training.is_hashed(feature):
                return CountedTable(values, None, [0] * len(new_days), None)
            of_ranges = merged[feature.table]
            new = self._read_new(of_ranges)
            sizes = sizes_after_days(new, len(values), len(new_days))
            values = pl.concat([values, new["value"]])
            return _counted_table(values, sizes, of_ranges, is_kept=True)

        self._take_counts(training, merged, directory)
        return {feature.table: grow(feature) for feature in training.categorical}

    def write_days(
        self,
        state: FeatureState,
        days: Iterable[DayToEncode],
        target: Path,
        report: Callable[[int], None],
    ) -> Iterator[WrittenDay]:
        """Write the files of days, in their order (`features.dataset.writer.write_days`)."""
        folder = target / "state"
        names = [
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        ]
        files = {name: self.exchange.share(folder / name, f"state/{name}") for name in names}
        fingerprint = state.fingerprint
        jobs = [
            EncodeDays(
                title=_title("encode", [packed.day.name for packed in group]),
                exchange=self.exchange,
                state=files,
                fingerprint=fingerprint,
                days=group,
            )
            for group in self._groups_to_encode(days)
        ]
        for job, written_days in zip(jobs, self.run_jobs(jobs), strict=True):
            for written in written_days:
                for name, listed in written.listed.items():
                    self.exchange.get(name, target / name, listed)
                yield written
            report(job.num_rows)

    def _groups_to_encode(self, days: Iterable[DayToEncode]) -> Iterator[list[PackedDay]]:
        group: list[PackedDay] = []
        for one in days:
            day = one.day.cut(0, one.day.num_rows)
            self.exchange.share_days([day])
            if (
                group
                and sum(packed.day.num_rows for packed in group) + day.num_rows > self.encoded_rows
            ):
                yield group
                group = []
            group.append(PackedDay(one.number, day, PackedCodes.of(one.codes), one.sizes, one.key))
        if group:
            yield group

    def _parts_to_fit(self, training: TrainingDays, days: list[int]) -> Iterator[PartToCount]:
        """Yield the first days, each in parts that have training rows."""
        for index, k in enumerate(days):
            codes, day = training.split_of_day(k), training.days[k]
            for start in range(0, day.num_rows, self.counted_rows):
                codes_of_part = codes[start : start + self.counted_rows]
                if (codes_of_part == TRAIN).any():
                    part = day.cut(start, start + self.counted_rows)
                    yield PartToCount([part], PackedCodes.of(codes_of_part), [index])

    def _new_parts(self, training: TrainingDays, new_days: NewDays) -> Iterator[PartToCount]:
        """Yield the new rows of each group of days; those of one day are cut into parts."""
        for group in new_days.groups:
            days = [
                training.days[k].cut(first, training.days[k].num_rows)
                for k, first in group.first_rows.items()
            ]
            parts = [days]
            if len(days) == 1:
                (day,) = days
                starts = range(0, day.num_rows, self.counted_rows)
                parts = [[day.cut(start, start + self.counted_rows)] for start in starts]
            for part in parts:
                yield PartToCount(part, None, new_days.indices_of(group))

    def _count(
        self,
        training: TrainingDays,
        names: list[str],
        parts: Iterable[PartToCount],
        fitted: dict[str, pl.DataFrame],
        *,
        for_transforms: bool = False,
    ) -> dict[str, CountedFiles]:
        """Count values for tables, or for transforms that are fitted, with a job for each part.

        Returns:
            The counts of each of `names`; parts of the same days are one group.
        """
        jobs: list[CountDays] = []
        indices = []
        phase = next(self.phases)
        fitted = _fitted_of_tables(training.schema, fitted)
        for part in parts:
            self.exchange.share_days(part.days)
            jobs.append(
                CountDays(
                    title=_title("count", [day.name for day in part.days]),
                    exchange=self.exchange,
                    folder=f"{phase}/{len(jobs)}",
                    schema=training.schema,
                    names=names,
                    for_transforms=for_transforms,
                    fitted=fitted,
                    days=part.days,
                    codes=part.codes,
                )
            )
            indices.append(part.day_indices)
        return _by_name(names, list(self.run_jobs(jobs)), indices)

    def _merge(
        self,
        training: TrainingDays,
        counted: dict[str, CountedFiles],
        before: dict[str, Path],
        num_days: int,
        *,
        keeps_counts: bool,
        min_count: int,
    ) -> dict[str, list[MergedCounts]]:
        """Add up the counts of each table, in jobs for ranges of its values.

        Returns:
            The results for the ranges of each table, in the order of the values.
        """
        jobs: list[MergeCounts] = []
        names = []
        phase = next(self.phases)
        for name, files in counted.items():
            samples = files.samples
            shared_before = None
            file_name = training.schema.file_names[name]
            if name in before:
                shared_before = self.exchange.share(before[name], f"{phase}/before/{file_name}")
                samples = [*samples, _sample_of_file(before[name])]
            for number, values in enumerate(ranges_of(samples, self.merged_values)):
                jobs.append(
                    MergeCounts(
                        title=f"merge {name}",
                        exchange=self.exchange,
                        folder=f"{phase}/{file_name}/{number}",
                        values=values,
                        before=shared_before,
                        groups=files.groups,
                        keeps_counts=keeps_counts,
                        min_count=min_count,
                        num_days=num_days,
                    )
                )
                names.append(name)
        merged: dict[str, list[MergedCounts]] = {name: [] for name in counted}
        for name, result in zip(names, self.run_jobs(jobs), strict=True):
            merged[name].append(result)
        return merged

    def _read_new(self, of_ranges: list[MergedCounts]) -> pl.DataFrame:
        """Read the values that became frequent, in the order of the vocabulary."""
        frames = []
        for merged in of_ranges:
            with self.exchange.open(merged.new) as file:
                frames.append(pl.DataFrame(pq.read_table(file)))
        if len(frames) == 1:
            return frames[0]
        return pl.concat(frames).sort(["day", "total", "value"], descending=[False, True, False])

    def _take_counts(
        self, training: TrainingDays, merged: dict[str, list[MergedCounts]], directory: Path
    ) -> None:
        """Write the counts of each table into a folder of features."""
        files = {
            name: [one.counts for one in of_ranges if one.counts]
            for name, of_ranges in merged.items()
        }
        jobs = [
            JoinCounts(
                title=f"join the counts of {name}",
                exchange=self.exchange,
                files=of_table,
                name=f"{of_table[0]}.joined",
            )
            for name, of_table in files.items()
            if len(of_table) > 1
        ]
        joined = {job.files[0]: name for job, name in zip(jobs, self.run_jobs(jobs), strict=True)}
        for name, of_table in files.items():
            path = counts_path(directory, training.schema, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # it may be a hard link to the file of the last run
            self.exchange.get(joined.get(of_table[0], of_table[0]), path)


def _fitted_of_tables(schema: Schema, fitted: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Return the tables that the transforms of categorical features were fitted to."""
    return {name: fitted[name] for name in schema.categorical_features if name in fitted}


def _by_name(
    names: list[str], results: list[dict[str, CountsFile]], day_indices: list[list[int]]
) -> dict[str, CountedFiles]:
    """Order the results of jobs by table; jobs of the same days make one group.

    Args:
        names: The tables.
        results: The results of the jobs.
        day_indices: The indices of the days of each job, in the days that were counted.
    """
    counted = {name: CountedFiles([], []) for name in names}
    for name, files in counted.items():
        for result, indices in zip(results, day_indices, strict=True):
            if files.groups and files.groups[-1].day_indices == indices:
                files.groups[-1].files.append(result[name].name)
            else:
                files.groups.append(CountedGroup([result[name].name], indices))
            files.samples.append((result[name].num_distinct, result[name].sample))
    return counted


def _counted_table(
    values: pl.Series, new_sizes: list[int], of_ranges: list[MergedCounts], *, is_kept: bool
) -> CountedTable:
    num_distinct = sum(merged.num_distinct for merged in of_ranges)
    last_seen = [sum(days) for days in zip(*(one.last_seen for one in of_ranges), strict=True)]
    return CountedTable(values, num_distinct, new_sizes, last_seen if is_kept else None)


def _sample_of_file(path: Path) -> Sample:
    """Return the first value of each row group of a file of counts, as a sample."""
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    statistics = [group.column(0).statistics for group in groups]
    dtype = pl.DataFrame(pq.read_schema(path).empty_table())["value"].dtype
    firsts = [one.min for one in statistics if one is not None and one.has_min_max]
    return metadata.num_rows, pl.Series("value", firsts, dtype)


def _title(action: str, days: list[str]) -> str:
    return f"{action} {days[0]}" + (f" and {len(days) - 1} more" if len(days) > 1 else "")
