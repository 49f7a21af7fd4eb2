"""The fit of the feature state on the first training days, and its growth by each later one.

The first `fit_days` training days are fitted together and make the first vocabulary version. Each
later training day appends its values, which makes one more version, so a new day takes the time of
one day, not of the whole log. The rows of a training day have the ids of the
version that counted them, validation and test rows those of the newest version. The counts of all
values, also of rare ones, are kept in counts/: a value that is rare on each day may be frequent in
a month.

Only the layout `frequency` grows, on a log of several files that is split by days. Any other state
is fitted from scratch in each run.

A `ValueCounter` counts the values: this process (`table_counts.py`), or the workers of a cluster
(features/distributed/).
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import polars as pl

from features.encode.day_groups import NewDays, group_days
from features.encode.feature_state import FeatureState
from features.encode.table_counts import (
    CountedTable,
    CountedVocabulary,
    LocalCounter,
    count_tables,
    read_counts,
)
from features.encode.training_days import TrainingDays
from features.encode.vocabulary import forget_values
from features.encode.vocabulary_history import COUNTS, CountedDay, VocabularyHistory
from features.schema.schema import Feature


class ValueCounter(Protocol):
    """Counts the values of the embedding tables. The methods are those of `LocalCounter`."""

    def fit_transforms(self, training: TrainingDays, days: list[int]) -> dict[str, pl.DataFrame]:
        """Fit the transforms."""

    def fit(
        self,
        training: TrainingDays,
        fitted: dict[str, pl.DataFrame],
        days: list[int],
        directory: Path,
    ) -> dict[str, CountedTable]:
        """Count the values on the first days."""

    def grow(
        self,
        training: TrainingDays,
        state: FeatureState,
        new_days: NewDays,
        old: Path,
        directory: Path,
    ) -> dict[str, CountedTable]:
        """Add the counts of later days to those of the last run."""


LOCAL_COUNTER = LocalCounter()


def fit_state(
    training: TrainingDays, made_by: str, directory: Path, counter: ValueCounter = LOCAL_COUNTER
) -> tuple[FeatureState, VocabularyHistory]:
    """Fit a feature state from scratch, the first vocabulary version.

    Args:
        training: The training rows.
        made_by: The hash of code and parameters to record.
        directory: The folder of features that counts/ is written into.
        counter: Counts the values.
    """
    fit_days = training.days_to_fit()
    fitted = counter.fit_transforms(training, fit_days)
    history = VocabularyHistory(made_by)
    if training.can_grow:
        counted = [
            CountedDay(training.days[k].name, training.days[k].sha256, training.num_train(k), 0)
            for k in fit_days
        ]
        history = replace(history, days=counted)
    tables = counter.fit(training, fitted, fit_days, directory)
    values = {name: table.values for name, table in tables.items()}
    state = FeatureState(training.schema, training.options.ids, values, fitted)
    return state, _with_counts(history, tables).starting_with(state)


def grow_state(
    training: TrainingDays,
    state: FeatureState,
    history: VocabularyHistory,
    old: Path,
    directory: Path,
    counter: ValueCounter = LOCAL_COUNTER,
) -> tuple[FeatureState, VocabularyHistory]:
    """Count each training day that is not counted yet, in time order: one version for each.

    A day counts when all its rows are for training.

    Args:
        training: The training rows.
        state: The feature state so far.
        history: The history so far.
        old: The folder of features with the counts of the history.
        directory: The folder of features that counts/ is written into; it may be `old`.
        counter: Counts the values.
    """
    first_rows = {
        k: history.num_counted(day)
        for k, day in enumerate(training.days)
        if training.num_train(k) == day.num_rows > history.num_counted(day)
    }
    if not first_rows and old != directory:
        shutil.copytree(old / COUNTS, directory / COUNTS, copy_function=os.link)
    for groups in group_days(training.days, first_rows):
        numbers = [k for group in groups for k in group.first_rows]
        history = history.with_days([training.days[k] for k in numbers])
        indices = {k: history.index_of(training.days[k]) for k in numbers}
        new_days = NewDays(groups, indices, len(history.days))
        tables = counter.grow(training, state, new_days, old, directory)
        sizes_by_table = [table.new_sizes for table in tables.values()]
        new_sizes = [list(sizes) for sizes in zip(*sizes_by_table, strict=True)]
        history = replace(_with_counts(history, tables), sizes=[*history.sizes, *new_sizes])
        values = {name: table.values for name, table in tables.items()}
        state = replace(state, vocabularies=values)
        old = directory
    return state, history


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

    tables = count_tables(training, compact, len(history.days), directory)
    values = {name: table.values for name, table in tables.items()}
    state = replace(state, vocabularies=values)
    return state, _with_counts(history, tables).starting_with(state)


def _with_counts(history: VocabularyHistory, tables: dict[str, CountedTable]) -> VocabularyHistory:
    """Return the history with the counts of the tables."""
    num_distinct = {name: table.num_distinct for name, table in tables.items()}
    last_seen = {name: table.last_seen for name, table in tables.items()}
    return replace(
        history,
        num_distinct=history.num_distinct | num_distinct,
        last_seen=history.last_seen
        | {name: days for name, days in last_seen.items() if days is not None},
    )
