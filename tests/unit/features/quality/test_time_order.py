"""A log that is newest first is refused where a column of times shows it."""

import random
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.artifact import Artifact, write_manifest
from common.files import DataError
from features.encode.days import Day, Part
from features.quality.time_order import check_later_training_rows, check_time_order
from features.schema.schema import SCHEMAS, load_schema
from tests.factories.dated_logs import use_schemas_of
from tests.factories.generated_logs import write_log
from tests.factories.support import make_features, make_params

AVAZU = load_schema("avazu")  # its column `hour` is a time
START = datetime(2026, 3, 1)


def days_of(folder: Path, *hours_of_days: list[int | None]) -> list[Day]:
    """Write a shard for each day with these times, in hours since START."""
    for k, hours in enumerate(hours_of_days):
        times = [None if hour is None else START + timedelta(hours=hour) for hour in hours]
        rows = pl.DataFrame({"hour": times}, schema={"hour": pl.Datetime("us")})
        rows.write_parquet(folder / f"{k}.parquet")
    write_manifest(folder, {})
    parquet = Artifact.open(folder)
    return [
        Day(f"day_{k}.tsv", parquet, (Part(f"{k}.parquet", "", len(hours), 0, len(hours)),))
        for k, hours in enumerate(hours_of_days)
    ]


@pytest.mark.parametrize(
    "hours_of_days",
    [
        [[0, 23], [24, 47], [48]],
        [[0, 30], [20, 40]],  # days that overlap, as in different time zones
        [[5, 9], [0, 30], [2, 8]],  # a time that has nothing to do with the order of the log
        [[1, 1], [1, 1]],  # one hour of data
        [[24], [None], [48], []],
    ],
)
def test_logs_that_may_be_oldest_first(tmp_path: Path, hours_of_days: list[list[int]]) -> None:
    check_time_order(days_of(tmp_path, *hours_of_days), AVAZU)


@pytest.mark.parametrize(
    ("hours_of_days", "message"),
    [
        ([[48], [24, 47], [0, 23]], "day_1.tsv comes after day_0.tsv, but is earlier"),
        ([[0, 23], [48, 71], [24, 47]], "day_2.tsv comes after day_1.tsv, but is earlier"),
        ([[24], [None], [], [0]], "day_3.tsv comes after day_0.tsv, but is earlier"),
        ([[24, 30], [20, 24]], "by the column hour: it ends at 2026-03-02 00:00:00"),
    ],
)
def test_logs_that_are_newest_first(
    tmp_path: Path, hours_of_days: list[list[int]], message: str
) -> None:
    with pytest.raises(DataError, match=f"{message}.*The log must be oldest first"):
        check_time_order(days_of(tmp_path, *hours_of_days), AVAZU)


def test_the_stage_refuses_a_log_of_one_file_that_is_newest_first(tmp_path: Path) -> None:
    log = write_log(tmp_path, AVAZU, 1400)
    header, *rows = log.read_text().splitlines()
    log.write_text("\n".join([header, *reversed(rows)]) + "\n")
    params = make_params(data__source=str(log), data__schema="avazu")
    with pytest.raises(DataError, match=r"log\.csv day 1 comes after log\.csv day 0"):
        make_features(tmp_path, params)
    folds = {"by": "folds", "folds": 4, "seed": 1}  # do not depend on the order
    make_features(tmp_path, make_params(**params.model_dump(by_alias=True), features__split=folds))


def test_training_rows_that_are_later_than_test_rows_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path, AVAZU, 1400)
    params = make_params(data__source=str(log), data__schema="avazu")
    make_features(tmp_path, params)
    header, *rows = log.read_text().splitlines()
    random.Random(1).shuffle(rows)
    log.write_text("\n".join([header, *rows]) + "\n")
    with pytest.raises(
        DataError, match=r"% of the training rows are later than the first"
    ) as error:
        make_features(tmp_path, params)
    assert "by the column hour" in str(error.value)
    assert "days: {column: hour}" in str(error.value)
    assert "row_time: false" in str(error.value)

    schema = (
        (SCHEMAS / "avazu.yaml").read_text().replace("kind: time,", "kind: time, row_time: false,")
    )
    assert "row_time" in schema
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "avazu.yaml").write_text(schema)
    use_schemas_of(tmp_path / "schemas", monkeypatch)
    make_features(tmp_path, params)  # it is not the time of a row


def test_a_few_late_rows_are_no_fault(tmp_path: Path) -> None:
    """A click that was logged late is in the file of the next day."""
    days = days_of(tmp_path, [0] * 150 + [30], [24] * 50, [50] * 50)
    codes = [np.zeros(151, np.uint8), np.ones(50, np.uint8), np.full(50, 2, np.uint8)]
    check_later_training_rows(days, lambda k: codes[k], AVAZU)
    late = days_of(tmp_path, [0] * 150 + [30, 30, 30], [24] * 50, [50] * 50)
    codes[0] = np.zeros(153, np.uint8)
    with pytest.raises(DataError, match="2% of the training rows are later"):
        check_later_training_rows(late, lambda k: codes[k], AVAZU)
