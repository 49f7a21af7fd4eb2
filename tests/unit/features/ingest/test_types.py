"""Each type of each format is read as what it plainly is, and alike in all formats."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from common.files import DataError
from features.ingest.readers.read_log import read_log
from features.ingest.readers.row_validation import ValidatedRows
from tests.factories.typed_columns import (
    BAD,
    CASES,
    CATEGORICAL,
    DENSE,
    FORMATS,
    LABEL,
    TIME,
    Case,
    expected_frame,
    write_log,
)


def read(path: Path, case: Case, log_format: str) -> ValidatedRows:
    """Read a log of a case, which is one piece."""
    (piece,) = read_log(path, case.schema(log_format), labelled=True, short_rows="quarantine")
    return piece


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_values_of_a_column(tmp_path: Path, case: Case, log_format: str) -> None:
    expected = expected_frame(case)
    first_line = 2 if log_format == "text" else 1
    bad_lines = [k + first_line for k, value in enumerate(case.expected) if value is BAD]
    for values in case.variants(log_format):
        write_log(tmp_path / "log", case, log_format, values)
        piece = read(tmp_path / "log", case, log_format)
        assert piece.num_lines == len(values)
        assert piece.bad_rows["line"].to_list() == bad_lines, values
        assert piece.rows.select(expected.columns).equals(expected), values
        assert piece.rows.schema[expected.columns[0]] == expected.dtypes[0]
        name = expected.columns[0]
        assert piece.bad_rows["reason"].str.starts_with(f"{name}: ").all()


@pytest.mark.parametrize(
    ("case", "log_format", "values", "reason"),
    [
        (
            Case("", LABEL | {"positive": ["yes"], "negative": ["no", "-1"]}, []),
            "text",
            ["yes", "maybe"],
            "label: 'maybe' is not one of 'yes', 'no', '-1' (positive, negative)",
        ),
        (
            Case("", LABEL, []),
            "parquet",
            pa.array([1, 2], pa.uint8()),
            "label: '2' is not 0 or 1",
        ),
        (
            Case("", LABEL, []),
            "parquet",
            pa.array([1, None], pa.uint8()),
            "label: '' is not 0 or 1",
        ),
        (
            Case("", TIME | {"parse": "unix"}, []),
            "text",
            ["1700000000", "1700000000000"],
            "x: '1700000000000' is not seconds since 1970 (other units: unix_ms, unix_us, unix_ns)",
        ),
        (
            Case("", TIME | {"parse": "%Y-%m-%d %H:%M", "zone": "Europe/Berlin"}, []),
            "text",
            ["2026-03-29 03:30", "2026-03-29 02:30"],
            "x: '2026-03-29 02:30' is not a time like %Y-%m-%d %H:%M in Europe/Berlin",
        ),
        (
            Case("", CATEGORICAL | {"parse": "string"}, []),
            "parquet",
            pa.array([b"a", b"\xff"]),
            "x: binary that is not UTF-8, text expected",
        ),
        (
            Case("", DENSE | {"parse": "float"}, []),
            "json_lines",
            [0.5, 1e300],
            "x: '1e+300' is not a finite number up to 3.4e+38",
        ),
    ],
)
def test_the_reason_of_a_bad_value(
    tmp_path: Path, case: Case, log_format: str, values: list[object] | pa.Array, reason: str
) -> None:
    write_log(tmp_path / "log", case, log_format, values)
    piece = read(tmp_path / "log", case, log_format)
    assert piece.bad_rows["reason"].to_list() == [reason]


@pytest.mark.parametrize(
    ("values", "parse"),
    [
        (pa.array([[1]]), "integer"),
        (pa.array([1.5]), "string"),
        (pa.array([1.5]), "hex32"),
        (pa.array([True]), "hex32"),
        (pa.array([None], pa.time64("us")), "string"),
        (pa.array([None], pa.decimal256(50, 2)), "integer"),
    ],
)
def test_a_type_that_cannot_have_the_values(tmp_path: Path, values: pa.Array, parse: str) -> None:
    case = Case("", CATEGORICAL | {"parse": parse}, [])
    write_log(tmp_path / "log", case, "parquet", values)
    with pytest.raises(DataError, match=r"column x is .*, which cannot be .*; convert it or"):
        read(tmp_path / "log", case, "parquet")


def test_the_binary_value_of_a_bad_row_is_kept(tmp_path: Path) -> None:
    case = Case("", CATEGORICAL | {"parse": "string"}, [])
    write_log(tmp_path / "log", case, "parquet", pa.array([b"a", b"b\xff"]))
    (raw,) = read(tmp_path / "log", case, "parquet").bad_rows["raw"]
    assert rb"b\\xff" in raw


def test_columns_of_one_name_in_parquet(tmp_path: Path) -> None:
    case = Case("", CATEGORICAL | {"parse": "string"}, [])
    table = pa.table([["a"], ["b"], [1], ["c"]], names=["x", "x", "label", "c"])
    pa.parquet.write_table(table, tmp_path / "log")
    with pytest.raises(DataError, match="several columns 'x'; give each a name of its own"):
        read(tmp_path / "log", case, "parquet")


def test_many_json_numbers_with_a_point_are_read_by_arrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that pandas has written, whose integers have gaps, is not read line by line."""
    monkeypatch.setattr("features.ingest.readers.json_lines.parse_line_by_line", None)
    case = Case("", DENSE | {"parse": "integer"}, [])
    write_log(tmp_path / "log", case, "json_lines", [5.0, None, float("nan"), -1.0])
    rows = read(tmp_path / "log", case, "json_lines").rows
    assert rows["x"].equals(pl.Series([5, None, None, None]))
