"""The fit of the feature state on the first training days, and its growth by each later one.

The first `fit_days` training days are fitted together and make the first vocabulary version. Each
later training day appends its values, which makes one more version, so a new day takes the time of
one day, not of the whole log. The rows of a training day have the ids of the
version that counted them, validation and test rows those of the newest version. The counts of all
values, also of rare ones, are kept in counts/: a value that is rare on each day may be frequent in
a month.

Only the layout `frequency` grows, on a log of several files that is split by days. Any other state
is fitted from scratch in each run.

All functions return new values. Threads only count values; `_write_counts` alone writes files.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from common.config.params import Features
from common.lookahead import map_ahead
from common.parquet import ParquetWriter, read_parquet
from features.encode.days import Day, rows_of_log, train_rows
from features.encode.feature_state import FeatureState, feature_value
from features.encode.split import TRAIN, SplitOfDay
from features.encode.stretches import scan_stretches
from features.encode.vocabulary import (
    forget_values,
    frequent_values,
    grow_by_days,
    grow_vocabulary,
    values_by_appearance,
)
from features.encode.vocabulary_history import COUNTS, CountedDay, VocabularyHistory
from features.schema.schema import Feature, Schema
from features.value_counts import (
    DAY,
    add_counts,
    count_values,
    count_values_by_day,
    counts_of_days,
)

COUNTS_GROUP_ROWS = 1 << 20
# Features that are counted at a time: sorting, reading and hashing release Python's lock.
NUM_THREADS = 2
# Days whose log files have at most SMALL_FILE_ROWS rows are read once and counted together: to open
# a file for each feature, or to count few rows, takes a time that does not depend on the number of
# rows. From about 12,000 rows of a file on it is faster to count a day alone.
SMALL_FILE_ROWS = 1 << 12
MAX_ROWS_IN_MEMORY = 1 << 18  # of days that are counted together


@dataclass(frozen=True)
class TrainingDays:
    """The training rows of the log as it is now, and what features are made of them.

    Attributes:
        schema: The schema, with the transforms that the features really have.
        options: The section `features` of params.yaml.
        days: All days of the log.
        split_of_day: The split of each row of a day.
    """

    schema: Schema
    options: Features
    days: list[Day]
    split_of_day: SplitOfDay

    @property
    def can_grow(self) -> bool:
        """Whether vocabularies grow day by day."""
        several_files = len({part.shard for day in self.days for part in day.parts}) > 1
        by_days = self.options.split.by == "days"
        return self.options.ids == "frequency" and by_days and several_files

    @property
    def categorical(self) -> list[Feature]:
        """The first categorical feature of each embedding table."""
        first = {names[0] for names in self.schema.tables.values()}
        return [feature for feature in self.schema.features if feature.name in first]

    def is_hashed(self, feature: Feature) -> bool:
        """Whether a categorical feature has the policy `hash`, so no vocabulary."""
        return self.schema.policies[feature.name].name == "hash"

    def num_train(self, k: int) -> int:
        """Return the number of training rows of day k."""
        return int((self.split_of_day(k) == TRAIN).sum())

    def days_to_fit(self) -> list[int]:
        """Return the numbers of the days that the first fit counts."""
        with_rows = [k for k in range(len(self.days)) if self.num_train(k)]
        return with_rows[: self.options.fit_days] if self.can_grow else with_rows

    def values_of_table(self, table: str, fitted: dict[str, pl.DataFrame]) -> list[pl.Expr]:
        """Return the value of each feature of an embedding table."""
        return [
            feature_value(feature, fitted.get(feature.name))
            for feature in self.schema.features
            if feature.name in self.schema.tables[table]
        ]

    def rows_of_day(self, k: int, first_row: int = 0) -> pl.LazyFrame:
        """Read the training rows of day k from a row on."""
        return train_rows(self.days, [k], self.split_of_day, first_row)

    def has_small_files(self, k: int) -> bool:
        """Whether the log files of day k have few rows, and so has the day."""
        day = self.days[k]
        return day.num_rows <= min(SMALL_FILE_ROWS * len(day.parts), MAX_ROWS_IN_MEMORY)


@dataclass(frozen=True)
class CountedVocabulary:
    """The vocabulary of an embedding table, with the counts that it follows from.

    Attributes:
        values: The vocabulary.
        num_distinct: The number of distinct values counted, rare ones included; None under the
            policy `hash`.
        counts: The counts of all values, to be kept; None if the vocabulary cannot grow.
        new_sizes: The number of values after each day that was counted.
    """

    values: pl.Series
    num_distinct: int | None
    counts: pl.DataFrame | None
    new_sizes: list[int]


def fit_state(
    training: TrainingDays, made_by: str, directory: Path
) -> tuple[FeatureState, VocabularyHistory]:
    """Fit a feature state from scratch, the first vocabulary version.

    Args:
        training: The training rows.
        made_by: The hash of code and parameters to record.
        directory: The folder of features that counts/ is written into.
    """
    fit_days = training.days_to_fit()
    rows = train_rows(training.days, fit_days, training.split_of_day)
    rows_of_days = [training.rows_of_day(k) for k in fit_days] if training.can_grow else [rows]
    if sum(training.num_train(k) for k in fit_days) <= MAX_ROWS_IN_MEMORY:
        rows_of_days = [rows_of_day.collect().lazy() for rows_of_day in rows_of_days]
        rows = pl.concat(rows_of_days)
    fitted = {}
    for feature in training.schema.features:
        table = feature.transform.fit(rows, feature.of) if feature.transform else None
        if table is not None:
            fitted[feature.name] = table
    history = VocabularyHistory(made_by)
    if training.can_grow:
        counted = [
            CountedDay(training.days[k].name, training.days[k].sha256, training.num_train(k), 0)
            for k in fit_days
        ]
        history = replace(history, days=counted)

    def fit(feature: Feature) -> CountedVocabulary:
        values = training.values_of_table(feature.table, fitted)
        return fit_vocabulary(training, feature, values, rows_of_days)

    vocabularies, history = _write_counts(training, fit, history, directory)
    values = {name: vocabulary.values for name, vocabulary in vocabularies.items()}
    state = FeatureState(training.schema, training.options.ids, values, fitted)
    return state, history.starting_with(state)


def fit_vocabulary(
    training: TrainingDays,
    feature: Feature,
    values_of_table: list[pl.Expr],
    rows_of_days: list[pl.LazyFrame],
) -> CountedVocabulary:
    """Fit the vocabulary of one embedding table.

    Args:
        training: The training rows.
        feature: The first feature of the table.
        values_of_table: The value of each of its features in each row.
        rows_of_days: The training rows of each day to count; of all days together if vocabularies
            do not grow.
    """
    min_count = training.options.min_count
    value = values_of_table[0]
    dtype = rows_of_days[0].select(value.alias("value")).collect_schema()["value"]
    if isinstance(dtype, pl.List):
        dtype = dtype.inner  # type: ignore[assignment]
    if training.is_hashed(feature):
        return CountedVocabulary(pl.Series("value", dtype=dtype), None, None, [])
    if training.options.ids == "appearance":
        # As the reference implementation does: rows of all splits are counted.
        all_rows = rows_of_log(training.days)
        null_value = "" if dtype == pl.String else 0
        values, num_distinct = values_by_appearance(all_rows, value, null_value, min_count)
        return CountedVocabulary(values, num_distinct, None, [])
    if training.can_grow:
        counts = add_counts(
            [_count_day(rows, values_of_table, i) for i, rows in enumerate(rows_of_days)]
        )
    else:
        (rows,) = rows_of_days
        counts = count_values(rows, *values_of_table)
    values = frequent_values(counts, min_count)
    kept_counts = counts if training.can_grow else None
    return CountedVocabulary(values, counts.height, kept_counts, [])


def _count_day(rows: pl.LazyFrame, values: list[pl.Expr], day_index: int) -> pl.DataFrame:
    """Count the values of the rows of one day.

    Args:
        rows: Typed rows.
        values: The value of each feature of a table.
        day_index: The index of the day in the days that were counted.

    Returns:
        The columns `value`, `count` and `last_day`.
    """
    counts = count_values(rows, *values)
    return counts.with_columns(pl.lit(day_index, pl.UInt32).alias("last_day"))


def grow_state(
    training: TrainingDays,
    state: FeatureState,
    history: VocabularyHistory,
    old: Path,
    directory: Path,
) -> tuple[FeatureState, VocabularyHistory]:
    """Count each training day that is not counted yet, in time order: one version for each.

    A day counts when all its rows are for training.

    Args:
        training: The training rows.
        state: The feature state so far.
        history: The history so far.
        old: The folder of features with the counts of the history.
        directory: The folder of features that counts/ is written into; it may be `old`.
    """
    first_rows = {
        k: history.num_counted(day)
        for k, day in enumerate(training.days)
        if training.num_train(k) == day.num_rows > history.num_counted(day)
    }
    if not first_rows and old != directory:
        shutil.copytree(old / COUNTS, directory / COUNTS, copy_function=os.link)
    for groups in _passes(training, first_rows):
        state, history = _grow_by(groups, training, state, history, old, directory)
        old = directory
    return state, history


@dataclass(frozen=True)
class GroupOfDays:
    """Days that are counted together.

    Attributes:
        first_rows: The first row to count of each day, by the number of the day in the log.
    """

    first_rows: dict[int, int]

    def with_day(self, k: int, first_row: int) -> "GroupOfDays":
        """Return the group with one more day."""
        return GroupOfDays({**self.first_rows, k: first_row})

    def read(self, training: TrainingDays) -> pl.DataFrame | None:
        """Read the rows, with one more column DAY; None for the only day of a group of large files.

        DAY (u32) is the place of the day in `first_rows`.
        """
        if not all(map(training.has_small_files, self.first_rows)):
            return None
        stretches = (
            stretch
            for k, first_row in self.first_rows.items()
            for stretch in training.days[k].stretches(first_row, training.days[k].num_rows)
        )
        sizes = [training.days[k].num_rows - first for k, first in self.first_rows.items()]
        rows = scan_stretches(stretches).collect()
        return rows.with_columns(pl.Series(DAY, np.repeat(np.arange(len(sizes)), sizes), pl.UInt32))


def _passes(training: TrainingDays, first_rows: dict[int, int]) -> Iterator[list[GroupOfDays]]:
    """Yield the groups of days whose rows are in memory at the same time.

    Args:
        training: The training rows.
        first_rows: The first row to count of each day, by the number of the day.
    """
    groups: list[GroupOfDays] = []
    rows_in_memory, follows_small_day = 0, False
    for k, first_row in first_rows.items():
        num_rows = training.days[k].num_rows - first_row
        is_small = training.has_small_files(k)
        rows_in_memory += num_rows if is_small else 0
        if rows_in_memory > MAX_ROWS_IN_MEMORY:
            yield groups
            groups, rows_in_memory, follows_small_day = [], num_rows, False
        if is_small and follows_small_day:
            groups[-1] = groups[-1].with_day(k, first_row)
        else:
            groups.append(GroupOfDays({k: first_row}))
        follows_small_day = is_small
    if groups:
        yield groups


def _grow_by(
    groups: list[GroupOfDays],
    training: TrainingDays,
    state: FeatureState,
    history: VocabularyHistory,
    old: Path,
    directory: Path,
) -> tuple[FeatureState, VocabularyHistory]:
    """Count some days, as `grow_state` does. All days of `groups` are counted in its order."""
    numbers = [k for group in groups for k in group.first_rows]
    history = history.with_days([training.days[k] for k in numbers])
    day_indices = {k: history.index_of(training.days[k]) for k in numbers}
    rows_of_groups = [group.read(training) for group in groups]
    min_count = training.options.min_count

    def grow(feature: Feature) -> CountedVocabulary:
        table, values = feature.table, state.vocabularies[feature.table]
        if training.is_hashed(feature):
            return CountedVocabulary(values, None, None, [0] * len(numbers))
        values_of_table = training.values_of_table(table, state.fitted)
        counts, sizes = read_counts(old, training.schema, table), []
        for group, rows in zip(groups, rows_of_groups, strict=True):
            if rows is None:
                ((k, first_row),) = group.first_rows.items()
                rows_of_day = training.rows_of_day(k, first_row)
                counts_of_day = _count_day(rows_of_day, values_of_table, day_indices[k])
                counts = add_counts([counts, counts_of_day])
                values = grow_vocabulary(values, counts, min_count)
                sizes.append(len(values))
            else:
                by_day = count_values_by_day(rows, *values_of_table)
                values, new_sizes = grow_by_days(
                    values, counts, by_day, min_count, len(group.first_rows)
                )
                indices = [day_indices[k] for k in group.first_rows]
                counts = add_counts([counts, counts_of_days(by_day, indices)])
                sizes += new_sizes
        return CountedVocabulary(values, counts.height, counts, sizes)

    vocabularies, history = _write_counts(training, grow, history, directory)
    sizes_by_table = [vocabulary.new_sizes for vocabulary in vocabularies.values()]
    new_sizes = [list(sizes) for sizes in zip(*sizes_by_table, strict=True)]
    history = replace(history, sizes=[*history.sizes, *new_sizes])
    values = {name: vocabulary.values for name, vocabulary in vocabularies.items()}
    return replace(state, vocabularies=values), history


def compact_state(
    training: TrainingDays,
    state: FeatureState,
    history: VocabularyHistory,
    unseen_days: int,
    directory: Path,
) -> tuple[FeatureState, VocabularyHistory]:
    """Forget the values that none of the last counted days had, which frees rows of the tables.

    The values that remain get smaller ids. The result is a first version of its own, so every day
    has to be encoded again.

    Args:
        training: The training rows.
        state: The feature state.
        history: Its history.
        unseen_days: The number of last counted days.
        directory: The folder of features whose counts/ is rewritten.
    """
    first_day = len(history.days) - unseen_days

    def compact(feature: Feature) -> CountedVocabulary:
        values = state.vocabularies[feature.table]
        if training.is_hashed(feature):
            return CountedVocabulary(values, None, None, [])
        values, counts = forget_values(
            values, read_counts(directory, training.schema, feature.table), first_day
        )
        return CountedVocabulary(values, counts.height, counts, [])

    vocabularies, history = _write_counts(training, compact, history, directory)
    values = {name: vocabulary.values for name, vocabulary in vocabularies.items()}
    state = replace(state, vocabularies=values)
    return state, history.starting_with(state)


def read_counts(directory: Path, schema: Schema, table: str) -> pl.DataFrame:
    """Read the counts of a table's values from a folder of features."""
    return read_parquet(directory / COUNTS / f"{schema.file_names[table]}.parquet")


def _write_counts(
    training: TrainingDays,
    count: Callable[[Feature], CountedVocabulary],
    history: VocabularyHistory,
    directory: Path,
) -> tuple[dict[str, CountedVocabulary], VocabularyHistory]:
    """Count the values of all tables in threads, and write the counts of one after another.

    Args:
        training: The training rows.
        count: Counts the values of a table, given its first feature. It runs in a thread.
        history: The history with all counted days.
        directory: The folder of features that counts/ is written into.

    Returns:
        The vocabularies by table, without their counts, and the history with what was counted.
    """
    num_distinct = dict(history.num_distinct)
    last_seen = dict(history.last_seen)
    vocabularies = {}
    features = training.categorical
    for feature, vocabulary in zip(features, map_ahead(count, features, NUM_THREADS), strict=True):
        name, counts = feature.table, vocabulary.counts
        num_distinct[name] = vocabulary.num_distinct
        if counts is not None:
            path = directory / COUNTS / f"{training.schema.file_names[name]}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # it may be a hard link to the file of the last run
            with ParquetWriter(path, counts.schema, COUNTS_GROUP_ROWS) as writer:
                writer.write(counts)
            days_of_values = vocabulary.values.to_frame("value").join(counts, on="value")[
                "last_day"
            ]
            last_seen[name] = np.bincount(
                days_of_values.to_numpy(), minlength=len(history.days)
            ).tolist()
        vocabularies[name] = replace(vocabulary, counts=None)
    return vocabularies, replace(history, num_distinct=num_distinct, last_seen=last_seen)
