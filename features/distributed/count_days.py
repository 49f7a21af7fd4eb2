"""The job that counts the values of some training rows, for one table after another."""

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.distributed.jobs import Job, PackedCodes
from features.encode.day_groups import GroupOfDays
from features.encode.days import Day, train_rows
from features.encode.feature_state import values_of_table, values_to_fit
from features.encode.table_counts import counts_writer
from features.schema.schema import Schema
from features.value_counts import count_values

SAMPLED_VALUES = 256


@dataclass(frozen=True)
class CountsFile:
    """The counts of one table in some rows, as a file of the exchange.

    Attributes:
        name: The name of the file.
        num_distinct: The number of its values.
        sample: At most SAMPLED_VALUES of the values, at equal distances.
    """

    name: str
    num_distinct: int
    sample: pl.Series


@dataclass(frozen=True, kw_only=True)
class CountDays(Job):
    """Counts the values of tables, or of what transforms are fitted to.

    The result has a `CountsFile` for each name in `names`.

    Attributes:
        folder: The folder of the exchange for the files; no other job has the same.
        schema: The schema.
        names: The embedding tables, or the features with a transform that is fitted.
        for_transforms: Whether `names` are features whose transforms are fitted.
        fitted: For each feature with a transform that is fitted, the table that it was fitted to.
        days: The days whose rows are counted.
        codes: The split of each row of one day, of which the training rows are counted. None if all
            rows are training rows, and the values of each day are counted apart, as of
            `count_values_by_day`.
    """

    folder: str
    schema: Schema
    names: list[str]
    for_transforms: bool
    fitted: dict[str, pl.DataFrame]
    days: list[Day]
    codes: PackedCodes | None

    def work(self) -> dict[str, CountsFile]:
        """Count, and return the file of each table or feature."""
        with self.exchange.work_folder() as folder, ExitStack() as stack:
            days = [self.exchange.local_day(day, folder / "shards") for day in self.days]
            for day in days:
                stack.enter_context(day.parquet.unchanged())
            group = GroupOfDays(dict.fromkeys(range(len(days)), 0))
            rows = training_rows = None
            if self.codes:
                codes = self.codes.unpack()
                training_rows = train_rows(days, [0], lambda _: codes)
            else:
                rows = group.read(days)
            files = {}
            for name in self.names:
                if training_rows is not None:
                    counts = count_values(training_rows, *self._values(name))
                else:
                    counts = group.count(days, rows, self._values(name))
                path = folder / "counts.parquet"
                with counts_writer(path, counts.schema) as writer:
                    writer.write(counts)
                file = CountsFile(
                    f"{self.folder}/{self.schema.file_names[name]}.parquet",
                    counts.height,
                    _sample_of(counts["value"]),
                )
                self.exchange.put(path, file.name)
                files[name] = file
        return files

    def _values(self, name: str) -> list[pl.Expr]:
        if self.for_transforms:
            return [values_to_fit(self.schema)[name]]
        return values_of_table(self.schema, name, self.fitted)


def _sample_of(values: pl.Series) -> pl.Series:
    num_values = min(len(values), SAMPLED_VALUES)
    return values.gather(np.linspace(0, max(len(values) - 1, 0), num_values).astype(np.int64))
