"""Which of the files in a folder are logs, and of which days, by their names alone."""

import pytest

from common.files import DataError
from features.collect.discovery import (
    check_names,
    days_of,
    partition_folders,
    partitions_of,
    select_logs,
)


@pytest.mark.parametrize(
    ("folders", "days"),
    [
        (["day=2026-01-09", "day=2026-01-10"], ["2026-01-09", "2026-01-10"]),
        (["dt=20260109", "dt=20260110"], ["2026-01-09", "2026-01-10"]),
        (["region=eu/dt=2026-01-09", "region=us/dt=2026-01-08"], ["2026-01-09", "2026-01-08"]),
        (["year=2026/month=1/day=9", "year=2026/month=01/day=10"], ["2026-01-09", "2026-01-10"]),
        (["year=2026/month=1", "year=2026/month=11"], ["2026-01", "2026-11"]),
        (["Year=2026/Month=1/Day=9/hour=7", "Year=2026/Month=1/Day=9/hour=8"], ["2026-01-09"] * 2),
        (["a=9/b=1", "a=10/b=2"], ["9", "10"]),
        (["month=12/year=2025", "month=1/year=2026"], ["2025-12", "2026-01"]),
        (["ts=2026-01-09%2007%3A00", "ts=2026-01-09%2008%3A00"], ["2026-01-09 07:00", "2026-01-09 08:00"]),
        (["day=20260231", "day=20260301"], ["20260231", "2026-03-01"]),  # one is no date
        (["x", "y"], [None, None]),
    ],
)  # fmt: skip
def test_the_key_that_is_the_day(folders: list[str], days: list[str | None]) -> None:
    names = [f"{folder}/part-0.parquet" for folder in folders]
    assert list(days_of(names).values()) == days


def test_days_are_in_order_and_parts_have_equal_names() -> None:
    names = [
        f"d={day}/h={hour}/part-{part}.tsv"
        for day in (10, 9)
        for hour in (1, 0)
        for part in (10, 2)
    ]
    found = select_logs(names)
    assert found.days == ["9", "10"]
    assert [log.name for log in found.logs] == [
        f"d={day}/h={hour}/part-{part}.tsv"
        for day in (9, 10)
        for hour in (0, 1)
        for part in (2, 10)
    ]
    assert found.logs[0].partitions == {"d": "9", "h": "0"}


def test_values_are_decoded_and_encoded() -> None:
    partitions = {"a": "x/y=%z é", "b": None}
    folders = partition_folders(partitions)
    assert folders == ["a=x%2Fy%3D%25z%20%C3%A9", "b=__HIVE_DEFAULT_PARTITION__"]
    assert partitions_of(folders) == partitions


def test_a_log_without_a_day_is_not_taken_but_other_keys_may_be_null() -> None:
    null = "__HIVE_DEFAULT_PARTITION__"
    found = select_logs([f"day={null}/a.tsv", "day=2026-01-01/a.tsv"])
    assert found.days == ["2026-01-01"]
    assert found.not_taken == {f"day is {null}": [f"day={null}/a.tsv"]}
    (log,) = select_logs([f"day=2026-01-01/hour={null}/a.tsv"]).logs
    assert log.partitions == {"day": "2026-01-01", "hour": None}


def test_hidden_names_anywhere_in_a_path_are_left_out() -> None:
    names = ["a/_temporary/0/part.tsv", "a/.b/c.tsv", "a/part.tsv", "_SUCCESS", "a/.part.tsv.crc"]
    found = select_logs(names)
    assert [log.name for log in found.logs] == ["a/part.tsv"]
    assert len(found.not_taken["name begins with _ or ."]) == 4


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["day=1/p.parquet", "_delta_log/00000.json"], "Delta"),
        (["t/day=1/p.parquet", "t/_delta_log/00000.json"], "Delta"),
        (["data/p.parquet", "metadata/v1.metadata.json"], "Iceberg"),
        (["p.parquet", ".hoodie/hoodie.properties"], "Hudi"),
    ],
)
def test_a_table_is_refused(names: list[str], kind: str) -> None:
    with pytest.raises(DataError, match=f"belongs to a table of {kind}, in whose folders"):
        select_logs(names)
    assert select_logs(["metadata/day_1.json"]).days  # another folder of this name


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["day=1/a.tsv", "b.tsv"],
            r"b\.tsv has no partitions, but day=1/a\.tsv has the partitions day",
        ),
        (
            ["day=1/a.tsv", "day=1/hour=2/b.tsv"],
            "has the partitions day, but .* partitions day, hour",
        ),
        (["day=1/day=2/a.tsv"], "has the partition day twice"),
        (["a", "a/b"], "the log a and a folder of logs beside it have the same name"),
        (["a", "a.parquet/b.parquet"], "the log a and a folder"),  # the shard of a is a.parquet
        (["bad_rows.parquet/a.parquet"], "a log cannot be called bad_rows.parquet"),
        (["manifest.json"], r"a log cannot be called manifest\.json"),
        (["a//b.tsv"], "cannot be that of a file"),
        (["a\0b.tsv"], "cannot be that of a file"),
        ([f"{'d' * 201}/a.tsv"], "has 201 bytes, at most 200"),
    ],
)
def test_what_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_names([log.name for log in select_logs(names).logs])


def test_no_name_leads_out_of_the_folder() -> None:
    found = select_logs(["../x.tsv", "a/../../x.tsv", "b.tsv"])
    assert [log.name for log in found.logs] == ["b.tsv"]
