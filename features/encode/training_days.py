"""The training rows of the log, from which the feature state is fitted."""

from dataclasses import dataclass

import polars as pl

from common.config.params import Features
from features.encode.days import Day, train_rows
from features.encode.split import TRAIN, SplitOfDay
from features.schema.schema import Feature, Schema
from features.value_counts import count_values


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

    def count_day(self, k: int, values: list[pl.Expr], day_index: int) -> pl.DataFrame:
        """Count the values of the training rows of day k.

        Args:
            k: The number of the day in the log.
            values: The value of each feature of a table.
            day_index: The index of the day in the days that were counted.

        Returns:
            The columns `value`, `count` and `last_day`.
        """
        counts = count_values(train_rows(self.days, [k], self.split_of_day), *values)
        return counts.with_columns(pl.lit(day_index, pl.UInt32).alias("last_day"))
