"""The counts of the values of the embedding tables, from which their vocabularies follow.

Threads only count values; `count_tables` alone writes files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from common.lookahead import map_ahead
from common.parquet import ParquetWriter, read_parquet
from features.encode.day_groups import NewDays
from features.encode.days import rows_of_days, train_rows
from features.encode.feature_state import (
    FeatureState,
    dtype_of_table,
    fit_transforms,
    values_of_table,
)
from features.encode.training_days import TrainingDays
from features.encode.vocabulary import (
    frequent_values,
    grow_counts,
    sizes_after_days,
    values_by_appearance,
)
from features.encode.vocabulary_history import COUNTS
from features.schema.schema import Feature, Schema
from features.value_counts import add_counts, count_values

COUNTS_GROUP_ROWS = 1 << 20
# Features that are counted at a time: sorting, reading and hashing release Python's lock.
NUM_THREADS = 2


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


@dataclass(frozen=True)
class CountedTable:
    """The vocabulary of an embedding table, after its counts were written.

    Attributes:
        values: The vocabulary.
        num_distinct: As of `CountedVocabulary`.
        new_sizes: As of `CountedVocabulary`.
        last_seen: As of `VocabularyHistory`; None if the counts are not kept.
    """

    values: pl.Series
    num_distinct: int | None
    new_sizes: list[int]
    last_seen: list[int] | None


class LocalCounter:
    """Counts the values of the embedding tables in threads of this process."""

    def fit_transforms(self, training: TrainingDays, days: list[int]) -> dict[str, pl.DataFrame]:
        """Fit the transforms, as of `features.encode.feature_state.fit_transforms`.

        Args:
            training: The training rows.
            days: The numbers of the days to fit them on.
        """
        rows = train_rows(training.days, days, training.split_of_day)
        return fit_transforms(training.schema, rows)

    def fit(
        self,
        training: TrainingDays,
        fitted: dict[str, pl.DataFrame],
        days: list[int],
        directory: Path,
    ) -> dict[str, CountedTable]:
        """Count the values on the first days, and write the counts if the vocabularies grow.

        Args:
            training: The training rows.
            fitted: For each feature with a transform that is fitted, the table of the fit.
            days: The numbers of the days to count. They are the first days that are counted.
            directory: The folder of features that counts/ is written into.

        Returns:
            The embedding tables by name.
        """
        rows = training.rows_to_fit(days)

        def fit(feature: Feature) -> CountedVocabulary:
            return fit_vocabulary(training, feature, fitted, rows)

        return count_tables(training, fit, len(days), directory)

    def grow(
        self,
        training: TrainingDays,
        state: FeatureState,
        new_days: NewDays,
        old: Path,
        directory: Path,
    ) -> dict[str, CountedTable]:
        """Add the counts of later days to those of the last run, and write the sums.

        Args:
            training: The training rows.
            state: The feature state so far.
            new_days: The days to count.
            old: The folder of features with the counts so far.
            directory: The folder of features that counts/ is written into; it may be `old`.

        Returns:
            The embedding tables by name.
        """
        rows_of_groups = [group.read(training.days) for group in new_days.groups]

        def grow(feature: Feature) -> CountedVocabulary:
            values = state.vocabularies[feature.table]
            if training.is_hashed(feature):
                return CountedVocabulary(values, None, None, [0] * len(new_days))
            of_features = values_of_table(training.schema, feature.table, state.fitted)
            counts_of_groups = (
                (group.count(training.days, rows, of_features), new_days.indices_of(group))
                for group, rows in zip(new_days.groups, rows_of_groups, strict=True)
            )
            counts = read_counts(old, training.schema, feature.table)
            new, counts = grow_counts(counts, counts_of_groups, training.options.min_count)
            sizes = sizes_after_days(new, len(values), len(new_days))
            values = pl.concat([values, new["value"]])
            return CountedVocabulary(values, counts.height, counts, sizes)

        return count_tables(training, grow, new_days.num_counted, directory)


def fit_vocabulary(
    training: TrainingDays,
    feature: Feature,
    fitted: dict[str, pl.DataFrame],
    rows_to_fit: list[pl.LazyFrame],
) -> CountedVocabulary:
    """Fit the vocabulary of one embedding table.

    Args:
        training: The training rows.
        feature: The first feature of the table.
        fitted: For each feature with a transform that is fitted, the table that it was fitted to.
        rows_to_fit: The rows to count, as of `TrainingDays.rows_to_fit`.
    """
    min_count = training.options.min_count
    dtype = dtype_of_table(training.schema, feature.table, fitted)
    of_features = values_of_table(training.schema, feature.table, fitted)
    if training.is_hashed(feature):
        return CountedVocabulary(pl.Series("value", dtype=dtype), None, None, [])
    if training.options.ids == "appearance":
        # As the reference implementation does: rows of all splits are counted.
        rows = rows_of_days(training.days)
        null_value = "" if dtype == pl.String else 0
        values, num_distinct = values_by_appearance(rows, of_features[0], null_value, min_count)
        return CountedVocabulary(values, num_distinct, None, [])
    all_counts = [count_values(rows, *of_features) for rows in rows_to_fit]
    if training.can_grow:
        all_counts = [
            counts.with_columns(pl.lit(index, pl.UInt32).alias("last_day"))
            for index, counts in enumerate(all_counts)
        ]
    counts = add_counts(all_counts)
    values = frequent_values(counts, min_count)
    kept_counts = counts if training.can_grow else None
    return CountedVocabulary(values, counts.height, kept_counts, [])


def count_tables(
    training: TrainingDays,
    count: Callable[[Feature], CountedVocabulary],
    num_days: int,
    directory: Path,
) -> dict[str, CountedTable]:
    """Count the values of all tables in threads, and write the counts of one after another.

    Args:
        training: The training rows.
        count: Counts the values of a table, given its first feature. It runs in a thread.
        num_days: The number of days that were counted.
        directory: The folder of features that counts/ is written into.

    Returns:
        The embedding tables by name.
    """
    tables = {}
    features = training.categorical
    for feature, vocabulary in zip(features, map_ahead(count, features, NUM_THREADS), strict=True):
        counts, last_seen = vocabulary.counts, None
        if counts is not None:
            path = counts_path(directory, training.schema, feature.table)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # it may be a hard link to the file of the last run
            with counts_writer(path, counts.schema) as writer:
                writer.write(counts)
            last_seen = last_seen_of(counts, training.options.min_count, num_days)
        tables[feature.table] = CountedTable(
            vocabulary.values, vocabulary.num_distinct, vocabulary.new_sizes, last_seen
        )
    return tables


def counts_path(directory: Path, schema: Schema, table: str) -> Path:
    """Return the path of the counts of a table's values in a folder of features."""
    return directory / COUNTS / f"{schema.file_names[table]}.parquet"


def read_counts(directory: Path, schema: Schema, table: str) -> pl.DataFrame:
    """Read the counts of a table's values from a folder of features."""
    return read_parquet(counts_path(directory, schema, table))


def counts_writer(path: Path, schema: pl.Schema) -> ParquetWriter:
    """Open a file of counts for writing, parts of which can be read alone."""
    return ParquetWriter(path, schema, COUNTS_GROUP_ROWS, statistics=True)


def last_seen_of(counts: pl.DataFrame, min_count: int, num_days: int) -> list[int]:
    """Return an entry of `VocabularyHistory.last_seen`.

    Args:
        counts: The counts of a table's values, with the column `last_day`.
        min_count: The number of occurrences that makes a value frequent, so part of the vocabulary.
        num_days: The number of days that were counted.
    """
    last_days = counts.filter(pl.col("count") >= min_count)["last_day"].to_numpy()
    return np.bincount(last_days, minlength=num_days).tolist()  # type: ignore[no-any-return]
