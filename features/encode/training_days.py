"""The training rows of the log, from which the feature state is fitted."""

from dataclasses import dataclass

import polars as pl

from common.config.params import Features
from features.encode.day_groups import MAX_ROWS_IN_MEMORY
from features.encode.days import Day, train_rows
from features.encode.split import TRAIN, SplitOfDay
from features.schema.schema import Feature, Schema


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

    @property
    def tables_with_vocabulary(self) -> list[str]:
        """The embedding tables whose policy is not `hash`."""
        return [feature.table for feature in self.categorical if not self.is_hashed(feature)]

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

    def rows_to_fit(self, days: list[int]) -> list[pl.LazyFrame]:
        """Read the training rows of some days; they are in memory if they are few.

        Args:
            days: The numbers of the days.

        Returns:
            The rows of each day if the vocabularies grow, else those of all days together.
        """
        parts = [[k] for k in days] if self.can_grow else [days]
        rows = [train_rows(self.days, numbers, self.split_of_day) for numbers in parts]
        if sum(self.num_train(k) for k in days) > MAX_ROWS_IN_MEMORY:
            return rows
        return [rows_of_part.collect().lazy() for rows_of_part in rows]
