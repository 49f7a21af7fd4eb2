"""A log whose schema names the column of the day is split by that, whatever its order is."""

import random
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from common.artifact import Artifact
from common.config.loading import ConfigError, check, read_yaml
from common.layout import FEATURES, PARQUET
from common.parquet import read_parquet
from features.ingest import shard
from features.ingest.readers.row_validation import BAD_ROWS_FILE
from features.ingest.stage import shards_of
from features.schema.schema import Schema, check_schema
from tests.factories.dated_logs import SCHEMA, line, use_schemas_of, write_schema
from tests.factories.support import make_features, make_params

START = datetime(2026, 3, 27)
NUM_DAYS, ROWS_A_DAY = 5, 48


@pytest.fixture
def use_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Return a function that makes the schema `shop` with days in a time zone."""
    use_schemas_of(tmp_path, monkeypatch)
    write_schema(tmp_path)
    return lambda zone: write_schema(tmp_path, zone)


def lines_in_order() -> list[str]:
    """Return a line for each half hour of five days; `number` is the place in time."""
    return [line(START + timedelta(minutes=30 * k), k) for k in range(NUM_DAYS * ROWS_A_DAY)]


def run(root: Path, files: dict[str, list[str]], **changes: object) -> Artifact:
    """Run the stages up to features on a log, and return the features."""
    (root / "clicks").mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (root / "clicks" / name).write_text("".join(lines))
    split = {"by": "days", "valid_days": 0.5, "test_days": 1, "test_first": False}
    shop = {"data__source": "clicks", "data__schema": "shop", "features__split": split}
    params = make_params(**shop | changes)
    make_features(root, params)
    return Artifact.open(root / FEATURES)


def numbers_by_day(features: Artifact, split: str) -> dict[str, list[int]]:
    """Return the places in time of the rows of a split, by day."""
    numbers = {}
    for name in features.names(split):
        dense = read_parquet(features.path(name))["number"]
        numbers[Path(name).stem] = sorted((dense.exp() - 1).round().cast(int).to_list())
    return numbers


@pytest.mark.parametrize("order", ["sorted", "newest first", "shuffled", "in three mixed files"])
def test_the_split_follows_the_time_in_any_order(
    tmp_path: Path, use_zone: object, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Small pieces and row groups, so that a day is spread over many of both."""
    monkeypatch.setattr(shard, "ROW_GROUP_ROWS", 20)
    monkeypatch.setattr("features.ingest.readers.blocks.BLOCK_BYTES", 1000)
    lines = lines_in_order()
    if order == "newest first":
        lines.reverse()
    elif order != "sorted":
        random.Random(1).shuffle(lines)
    parts = 3 if "files" in order else 1
    features = run(tmp_path / "run", {f"{k}.csv": lines[k::parts] for k in range(parts)})

    assert [day["name"] for day in features.read_json("data.json")["days"]] == [
        f"2026-03-{27 + k}" for k in range(NUM_DAYS)
    ]
    size = ROWS_A_DAY
    assert numbers_by_day(features, "train") == {
        **{f"day_{k:03d}": list(range(k * size, (k + 1) * size)) for k in range(3)},
        "day_003": list(range(3 * size, 3 * size + size // 2)),
    }
    assert numbers_by_day(features, "valid") == {
        "day_003": list(range(3 * size + size // 2, 4 * size))
    }
    assert numbers_by_day(features, "test") == {"day_004": list(range(4 * size, 5 * size))}
    parquet = Artifact.open(tmp_path / "run" / PARQUET)
    for one in shards_of(parquet):
        times = read_parquet(parquet.path(one.parquet))["ts"]
        assert times.dt.date().is_sorted()
        assert one.days == dict(sorted(Counter(map(str, times.dt.date())).items()))


def test_rows_of_a_day_keep_the_order_of_the_file(tmp_path: Path, use_zone: object) -> None:
    lines = lines_in_order()
    random.Random(2).shuffle(lines)
    run(tmp_path / "run", {"log.csv": lines})
    rows = read_parquet(tmp_path / "run" / PARQUET / "log.csv.parquet")
    expected = sorted(lines, key=lambda row: row[: len("2026-03-27")])
    assert rows["number"].to_list() == [int(row.split(",")[2]) for row in expected]


def test_days_are_those_of_their_time_zone(tmp_path: Path, use_zone: object) -> None:
    """Berlin is an hour ahead of UTC, and two hours from 29 March on: that day has 23 hours."""
    use_zone("Europe/Berlin")  # type: ignore[operator]
    features = run(tmp_path / "run", {"log.csv": lines_in_order()})
    days = {day["name"]: day["num_rows"] for day in features.read_json("data.json")["days"]}
    assert days == {
        "2026-03-27": 46,
        "2026-03-28": 48,
        "2026-03-29": 46,
        "2026-03-30": 48,
        "2026-03-31": 48,
        "2026-04-01": 4,
    }


def test_a_row_without_the_time_is_a_bad_row(tmp_path: Path, use_zone: object) -> None:
    lines = [*lines_in_order(), ",1,7,shop 1\n"]
    run(tmp_path / "run", {"log.csv": lines}, ingest__max_bad_fraction=0.01)
    bad_rows = read_parquet(tmp_path / "run" / PARQUET / BAD_ROWS_FILE)
    assert bad_rows["line"].to_list() == [len(lines)]
    assert bad_rows["reason"].to_list() == ["ts: '' is not a time like %Y-%m-%d %H:%M:%S"]


def test_a_time_of_day_that_comes_late_changes_nothing_but_its_day(
    tmp_path: Path, use_zone: object
) -> None:
    """A second file with more rows of the last day, as a nightly export writes it."""
    lines = lines_in_order()
    features = run(tmp_path / "run", {"1.csv": lines[:-10]})
    before = {name: features.files[name] for name in features.names("train")}
    features = run(tmp_path / "run", {"2.csv": lines[-10:]})
    assert numbers_by_day(features, "test") == {"day_004": list(range(192, 240))}
    assert {name: features.files[name] for name in features.names("train")} == before


def test_the_vocabulary_of_a_day_that_was_cut_by_time_is_that_of_a_new_start(
    tmp_path: Path, use_zone: object
) -> None:
    """The newest rows of the last training day are first in its file, and the next day counts them.

    So the counts of the day cannot grow by its rows after those that were counted.
    """
    split = {"by": "days", "valid_days": 0.25, "test_days": 0.25, "test_first": False}
    changes = {"features__split": split, "features__min_count": 2, "features__fit_days": 10}
    rows = [
        line(START + timedelta(minutes=30 * k), k, shop=k // 6)
        for k in range(NUM_DAYS * ROWS_A_DAY)
    ]
    days = [rows[k * ROWS_A_DAY : (k + 1) * ROWS_A_DAY][::-1] for k in range(NUM_DAYS)]
    files = {f"{k}.csv": day for k, day in enumerate(days)}
    last = {"4.csv": files.pop("4.csv")}
    run(tmp_path / "grown", files, **changes)
    grown = run(tmp_path / "grown", last, **changes)
    made = run(tmp_path / "made", files | last, **changes)
    assert grown.names("state") == made.names("state")
    for name in [*made.names("state"), *made.names("train")]:
        assert grown.files[name] == made.files[name], name


@pytest.mark.parametrize(
    ("days", "message"),
    [
        ("{column: number}", "days: 'number' is no time column"),
        ("{column: other}", "days: 'other' is no time column"),
        ("{column: ts, zone: Mars/North}", "'Mars/North' is no time zone"),
    ],
)
def test_wrong_declarations(tmp_path: Path, days: str, message: str) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(SCHEMA.replace("{column: ts, zone: ZONE}", days))
    with pytest.raises(ConfigError, match=message):
        check_schema(check(Schema, read_yaml(path), path), path)
