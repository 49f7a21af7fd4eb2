"""The rows that a challenger and a champion are compared on: the challenger's test rows, as they were evaluated."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import polars as pl

from common.config.params import Params
from common.files import DataError, read_json
from features.encode.days import Day, read_days, split_rows
from features.encode.split import TEST, SplitOf
from features.encode.stage import split_days
from features.ingest.shard import Shard
from features.ingest.stage import used_shards
from features.schema.schema import Schema
from training.evaluation.stage import EVALUATION


@dataclass(frozen=True)
class EvaluatedRows:
    """They are read from artifacts/parquet, raw and typed, so that a model with other features can score them as well."""

    schema: Schema
    shards: list[Shard]
    days: list[Day]
    split_of: SplitOf
    evaluation: Path

    @classmethod
    def of(cls, schema: Schema, params: Params, root: Path) -> Self:
        """schema: that of the log."""
        shards = used_shards(root)
        days = read_days(shards, params.data.days, root)
        return cls(schema, shards, days, split_days(days, schema, params), root / EVALUATION)

    @property
    def files(self) -> list[Shard]:
        """The log files that they stand in."""
        if len(self.shards) == 1:
            return self.shards
        return [shard for k, shard in enumerate(self.shards) if (self.split_of(k) == TEST).any()]

    def pieces(self) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
        """Rows and the float32 scores that they were evaluated with, in their order, some at a time.

        Raises DataError where other rows were evaluated.
        """
        scores = pl.scan_parquet(self.evaluation / "scores.parquet")
        first = read_json(self.evaluation / "metrics.json")["valid"]["num_rows"]
        for _, rows in split_rows(self.days, TEST, self.split_of):
            found = scores.slice(first, rows.height).collect()
            first += rows.height
            if not found["label"].equals(rows[self.schema.label]):
                raise self._evaluated_others()
            yield rows, found["score"]
        if first != scores.select(pl.len()).collect().item():
            raise self._evaluated_others()

    def _evaluated_others(self) -> DataError:
        return DataError(
            f"{self.evaluation} is not of the test rows in artifacts/parquet; run the evaluate stage again"
        )
