"""The rows that challenger and champion are compared on: the challenger's test rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import polars as pl
from pydantic import BaseModel, ConfigDict

from common.artifact import Artifact
from common.config.base import Fraction, NotNegative, Positive, Strict
from common.config.loading import check_json
from common.config.params import Params
from common.files import DataError
from common.layout import EVALUATION, PARQUET
from common.parquet import scan_parquet
from features.dataset.stage import split_log
from features.encode.days import Day, read_days, read_split
from features.encode.split import TEST, SplitOfDay
from features.ingest.shard import Shard
from features.ingest.stage import used_shards
from features.schema.schema import Schema
from training.promotion.compared_metrics import ComparedMetrics, Number

SCORES, METRICS = "scores.parquet", "metrics.json"
REMEDY = "run the evaluate stage again"


class TestMetrics(ComparedMetrics):
    """The metrics of the test rows (training/evaluation/metrics.py); other keys are kept."""

    model_config = ConfigDict(extra="allow")

    num_rows: Positive
    ece: Fraction
    calibration_ratio: Number | None
    calibration_ratio_low: Number | None
    calibration_ratio_high: Number | None


class ValidMetrics(BaseModel):
    """The metrics of the validation rows."""

    num_rows: NotNegative


class RecordedFootprint(Strict):
    """The footprint of the model (training/models/footprint.py)."""

    parameters: Positive
    table_parameters: NotNegative
    bytes: Positive
    macs: Positive
    bytes_per_row: NotNegative


class EvaluationMetrics(BaseModel):
    """The contents of metrics.json, as far as the decision uses them.

    Attributes:
        valid: The metrics of the validation rows.
        test: The metrics of the test rows.
        footprint: The footprint of the model; None in older files.
    """

    valid: ValidMetrics
    test: TestMetrics
    footprint: RecordedFootprint | None = None

    @classmethod
    def read(cls, evaluation: Artifact) -> Self:
        """Read metrics.json of the evaluate stage.

        Raises:
            DataError: The file is missing or damaged.
        """
        return check_json(cls, evaluation.read_json(METRICS), evaluation.folder / METRICS, REMEDY)


@dataclass(frozen=True)
class EvaluatedTestSet:
    """The challenger's test rows, and the scores that the evaluate stage gave them.

    The rows are read from artifacts/parquet, typed but not encoded, so that a model with other
    features can score them too.

    Attributes:
        schema: The schema of the log.
        shards: The shards of the log.
        days: The days of the log.
        split_of: The split of each row of a day.
        evaluation: artifacts/evaluation.
        parquet: artifacts/parquet.
    """

    schema: Schema
    shards: list[Shard]
    days: list[Day]
    split_of: SplitOfDay
    evaluation: Artifact
    parquet: Artifact

    @classmethod
    def open(cls, schema: Schema, params: Params, root: Path) -> Self:
        """Find the test rows of the log with this schema below the project folder.

        Raises:
            DataError: The artifacts are missing, or the scores are damaged.
        """
        parquet = Artifact.open(root / PARQUET)
        shards = used_shards(parquet)
        days = read_days(parquet, shards, params.data.days)
        split_of = split_log(days, schema, params)
        evaluation = Artifact.open(root / EVALUATION)
        evaluation.path(SCORES)  # damage is to be noticed before the long work
        return cls(schema, shards, days, split_of, evaluation, parquet)

    @property
    def test_days(self) -> list[str]:
        """The names of the days that have test rows."""
        return [day.name for k, day in enumerate(self.days) if (self.split_of(k) == TEST).any()]

    @property
    def files(self) -> list[Shard]:
        """The log files that contain test rows."""
        with_test_rows = set()
        for k, day in enumerate(self.days):
            is_test, start = self.split_of(k) == TEST, 0
            for part in day.parts:
                if is_test[start : start + part.num_rows].any():
                    with_test_rows.add(part.shard)
                start += part.num_rows
        return [shard for shard in self.shards if shard.parquet in with_test_rows]

    def pieces(self) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
        """Read the test rows in order, a bounded number at a time.

        Yields:
            Typed rows, and the float32 scores that they were evaluated with.

        Raises:
            DataError: The evaluate stage has scored other rows, or a file is damaged.
        """
        with self.evaluation.unchanged(), self.parquet.unchanged():
            yield from self._pieces()

    def _pieces(self) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
        scores = scan_parquet(self.evaluation.path(SCORES))
        # The scores of the validation rows come first.
        first = EvaluationMetrics.read(self.evaluation).valid.num_rows
        for _, rows in read_split(self.days, TEST, self.split_of):
            evaluated = scores.slice(first, rows.height).collect()
            first += rows.height
            if not evaluated["label"].equals(rows[self.schema.label]):
                raise self._error()
            yield rows, evaluated["score"]
        if first != scores.select(pl.len()).collect().item():
            raise self._error()

    def check_model(self, version: str) -> None:
        """Check that the evaluate stage scored the rows with this version of the model.

        Raises:
            DataError: It did so with another one. Since then bundle.json was damaged, or a new
                model was trained.
        """
        evaluated = self.evaluation.about.get("model")
        if evaluated != version:
            raise DataError(
                f"{self.evaluation.folder} is of model {evaluated}, but the bundle is model"
                f" {version}; {REMEDY}"
            )

    def _error(self) -> DataError:
        return DataError(
            f"{self.evaluation.folder} does not have the scores of the test rows in "
            "artifacts/parquet; run the evaluate stage again"
        )
