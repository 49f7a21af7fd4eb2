"""Columns of every kind and type: the same values as text, JSON lines and Parquet have them."""

import json
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from features.schema.schema import Schema

BAD = object()  # expected where the row is malformed
NULL_TOKENS = ["", "NaN", "-1"]
FORMATS: dict[str, dict[str, Any]] = {
    "text": {"kind": "text", "separator": ";", "quote": '"', "header": True},
    "json_lines": {"kind": "json_lines"},
    "parquet": {"kind": "parquet"},
}
LABEL = {"kind": "label", "names": ["label"]}
DENSE = {"kind": "dense", "names": ["x"], "transform": "log1p"}
CATEGORICAL = {"kind": "categorical", "names": ["x"], "policy": "vocabulary"}
TIME = {"kind": "time", "names": ["x"]}
OTHER = {"kind": "categorical", "names": ["c"], "parse": "string", "policy": "vocabulary"}
HOUR = {"name": "hour", "transform": "hour", "of": ["x"], "policy": "vocabulary"}
CET = timezone(timedelta(hours=2))
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """A column, and the values that it must be read as.

    Attributes:
        name: The name of the case.
        column: Its group in the schema; the column is `x`, or the label.
        expected: The values, None where one is missing and BAD where the row is malformed.
        text: Lists of fields, each of which has these values.
        json: Lists of JSON values.
        arrow: Arrays of Parquet.
    """

    name: str
    column: dict[str, Any]
    expected: list[Any]
    text: list[list[str]] = field(default_factory=list)
    json: list[list[Any]] = field(default_factory=list)
    arrow: list[pa.Array] = field(default_factory=list)

    @property
    def is_label(self) -> bool:
        """Whether the column is the label."""
        return bool(self.column["kind"] == "label")

    def schema(self, log_format: str) -> Schema:
        """Return the schema of a log with this column in a format."""
        columns = [self.column, OTHER] if self.is_label else [LABEL, self.column, OTHER]
        derived = [HOUR] if self.column["kind"] == "time" else []
        if self.is_label:
            columns.append(OTHER | {"names": ["d"]})
        return Schema.model_validate(
            {
                "format": FORMATS[log_format] | {"null_tokens": NULL_TOKENS},
                "columns": columns,
                "derived": derived,
            }
        )

    def variants(self, log_format: str) -> list[Any]:
        """Return the ways in which a format has the values."""
        return {"text": self.text, "json_lines": self.json, "parquet": self.arrow}[log_format]


def write_log(path: Path, case: Case, log_format: str, values: Any) -> None:
    """Write a log with a column of these values, and two more."""
    name = "label" if case.is_label else "x"
    count = len(values)
    others: dict[str, Any] = {"c": [f"c{k % 2}" for k in range(count)]}
    others |= {"d": ["d"] * count} if case.is_label else {"label": [k % 2 for k in range(count)]}
    if log_format == "parquet":
        pq.write_table(pa.table({name: values, **others}), path)
        return
    rows = [
        {name: value, **dict(zip(others, rest, strict=True))}
        for value, *rest in zip(values, *others.values(), strict=True)
    ]
    if log_format == "json_lines":
        lines = [_json_of(row) for row in rows]
    else:
        lines = [";".join(rows[0]), *(";".join(map(str, row.values())) for row in rows)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


class Raw(str):
    """A JSON value as it is written in the log."""

    __slots__ = ()


def _json_of(row: dict[str, Any]) -> str:
    values = {
        key: value if isinstance(value, Raw) else json.dumps(value) for key, value in row.items()
    }
    return "{" + ", ".join(f'"{key}": {value}' for key, value in values.items()) + "}"


def decimals(values: list[str | None], precision: int, scale: int) -> pa.Array:
    """Return a column of decimals."""
    numbers = [None if value is None else Decimal(value) for value in values]
    return pa.array(numbers, pa.decimal128(precision, scale))


def times(values: list[datetime | None]) -> list[pa.Array]:
    """Return timestamps of every unit and with time zones, which are the same points in time."""
    aware = [value and value.replace(tzinfo=UTC) for value in values]
    return [
        *(pa.array(values, pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
        *(
            pa.array(aware, pa.timestamp(unit, zone))
            for unit in ("ms", "us", "ns")
            for zone in ("UTC", "America/New_York", "+05:30")
        ),
    ]


UUIDS = [UUID("550e8400-e29b-41d4-a716-446655440000"), UUID(int=7)]
BIG = 2**63 + 12345  # no int64
EXACT = 2**53 + 1  # no float64
AT = datetime(2026, 3, 1, 10, 15)
SECONDS = int(AT.replace(tzinfo=UTC).timestamp())
LOCAL = TIME | {"parse": "%Y-%m-%d %H:%M", "zone": "Europe/Berlin"}
# In Berlin, clocks are set forward on 2026-03-29 from 02:00 to 03:00, and back on 2026-10-25 from
# 03:00 to 02:00.
LOCAL_TIMES = ["2026-07-01 12:00", "2026-03-29 02:30", "2026-10-25 02:30", "2026-10-25 03:30"]
UTC_TIMES = [
    datetime(2026, 7, 1, 10),
    BAD,
    datetime(2026, 10, 25, 0, 30),
    datetime(2026, 10, 25, 2, 30),
]
ANSWERS = LABEL | {"positive": ["yes", "true", 1], "negative": ["no", "false", "-1"]}
EMPTY = [None, None, None]


def _unix(parse: str, per_second: int, rest: int) -> Case:
    """Return a case of times in a unit; the second one has `rest` units more."""
    first = SECONDS * per_second
    numbers = [first, first + rest, -2 * per_second, None]
    as_floats = [None if one is None else float(one) for one in numbers]
    microseconds = rest * 10**6 // per_second
    expected = [
        AT,
        AT + timedelta(microseconds=microseconds),
        datetime(1969, 12, 31, 23, 59, 58),
        None,
    ]
    text = [["" if one is None else str(one) for one in numbers]]
    json_values: list[list[Any]] = [numbers, [one if one is None else str(one) for one in numbers]]
    arrow = [pa.array(numbers), pa.array(text[0]), decimals([*map(_or_none, numbers)], 38, 0)]
    if per_second < 10**9:  # nanoseconds of today are no exact floats
        text.append(["" if one is None else str(one) for one in as_floats])
        json_values.append(as_floats)
        arrow.append(pa.array(as_floats))
    return Case(parse, TIME | {"parse": parse}, expected, text, json_values, arrow)


def _or_none(value: int | None) -> str | None:
    return None if value is None else str(value)


CASES = [
    Case(
        "label",
        LABEL,
        [0, 1, 1],
        [["0", "1", "1"], ["0.0", "1.0", "1.0"], ["false", "true", "True"], ["FALSE", "TRUE", "1"]],
        [[0, 1, 1], [0.0, 1.0, 1], [False, True, True], ["0", "1", "1"], [False, 1, "1.0"]],
        [
            pa.array([0, 1, 1], pa.int8()),
            pa.array([0, 1, 1], pa.uint64()),
            pa.array([0.0, 1.0, 1.0]),
            pa.array([0.0, 1.0, 1.0], pa.float16()),
            pa.array([False, True, True]),
            decimals(["0", "1", "1"], 38, 0),
            decimals(["0", "1", "1"], 10, 2),
            pa.array(["0", "1", "1"]).dictionary_encode(),
            pa.array([b"0", b"1", b"1"]),
        ],
    ),
    Case(
        "bad labels",
        LABEL,
        [1, BAD, BAD, BAD],
        [["1", "2", "", "0.5"], ["1", "yes", "NaN", "-1"]],
        [[1, 2, None, 0.5], [1, "yes", NAN, -1], [True, 2, None, "x"]],
        [
            pa.array([1, 2, None, -1]),
            pa.array([1, 2, None, 0.5]),
            pa.array([1, NAN, -1, 0.5]),
            decimals(["1", "2", None, "0.5"], 5, 1),
        ],
    ),
    Case(
        "listed labels",
        ANSWERS,
        [1, 0, BAD],
        [["yes", "no", "maybe"], ["true", "false", ""], ["1", "no", "-1"], ["1", "no", "1.0"]],
        [["yes", "no", "maybe"], [True, False, None], [1, "no", -1], [1.0, False, 2]],
        [
            pa.array(["yes", "no", "maybe"]),
            pa.array([True, False, None]),
            pa.array(["1", "no", "Yes"]).dictionary_encode(),
            pa.array([b"yes", b"no", b"\xff"]),
        ],
    ),
    Case(
        "listed numbers as labels",
        LABEL | {"positive": [2], "negative": [1]},
        [1, 0, BAD],
        [["2", "1", "0"]],
        [[2, 1, 0], [2.0, 1.0, 0.5], ["2", "1", "2.0"]],
        [pa.array([2, 1, 0]), pa.array([2.0, 1.0, 0.5]), decimals(["2", "1", "0"], 38, 0)],
    ),
    Case(
        "integer",
        DENSE | {"parse": "integer"},
        [5, -7, None, None],
        [["5", "-7", "", "-1"], ["5.0", "-7.0", "NaN", ""], ["5e0", "-7.00", "", ""]],
        [
            [5, -7, None, -1],
            [5.0, -7.0, NAN, -1.0],
            ["5", "-7.0", "", "-1"],
            [Raw("5e0"), Raw("-7.00"), Raw("-1.0"), None],
            [5, "-7", None, NAN],
        ],
        [
            pa.array([5, -7, None, -1], pa.int16()),
            pa.array([5.0, -7.0, NAN, -1.0]),
            pa.array([5.0, -7.0, None, NAN], pa.float32()),
            decimals(["5", "-7", None, "-1"], 38, 0),
            decimals(["5.00", "-7.00", None, "-1"], 20, 2),
            pa.array([5, -7, None, -1]).dictionary_encode(),
            pa.array(["5", "-7.0", "", "-1"]).dictionary_encode(),
            pa.array([b"5", b"-7", b"", b"-1"], pa.large_binary()),
        ],
    ),
    Case(
        "no integers",
        DENSE | {"parse": "integer"},
        [5, BAD, BAD],
        [["5", "5.5", "99999999999999999999"], ["5", "9007199254740993.0", "inf"]],
        [[5, 5.5, 10**30], [5.0, 5.5, "x"], [5.0, Raw("9007199254740993.0"), Raw("1e300")]],
        [
            pa.array([5, 5.5, 1e300]),
            pa.array([5, BIG, BIG], pa.uint64()),
            decimals(["5", "5.5", "1e30"], 38, 2),
            pa.array([b"5", b"\xff", b"x"]),
        ],
    ),
    Case(
        "booleans as integers",
        CATEGORICAL | {"parse": "integer"},
        [1, 0, None],
        [["true", "false", ""], ["True", "False", ""], ["1", "0", "NaN"]],
        [[True, False, None], [1, False, None], ["true", "false", ""]],
        [pa.array([True, False, None]), pa.array(["True", "False", None])],
    ),
    Case(
        "64-bit integers",
        CATEGORICAL | {"parse": "integer"},
        [EXACT, 2**63 - 1, -(2**63), None],
        [[str(EXACT), str(2**63 - 1), str(-(2**63)), ""]],
        [
            [EXACT, 2**63 - 1, -(2**63), None],
            [EXACT, str(2**63 - 1), -(2**63), None],
            [EXACT, 2**63 - 1, -(2**63), NAN],
        ],
        [
            pa.array([EXACT, 2**63 - 1, -(2**63), None]),
            decimals([str(EXACT), str(2**63 - 1), str(-(2**63)), None], 38, 0),
        ],
    ),
    Case(
        "float",
        DENSE | {"parse": "float"},
        [0.5, 3.0, None, None],
        [["0.5", "3", "NaN", "-1"], ["5e-1", "3.0", "", ""]],
        [[0.5, 3, NAN, -1], ["0.5", "3", "", "NaN"], [0.5, "3", None, -1.0]],
        [
            pa.array([0.5, 3, NAN, -1]),
            pa.array([0.5, 3, None, -1], pa.float32()),
            pa.array([0.5, 3, NAN, None], pa.float16()),
            decimals(["0.5", "3", None, "-1"], 10, 2),
            pa.array(["0.5", "3", "", "NaN"]),
        ],
    ),
    Case(
        "floats that float32 cannot hold",
        DENSE | {"parse": "float"},
        [0.5, BAD, BAD],
        [["0.5", "1e300", "-1e39"], ["0.5", "inf", "nan"]],
        [[0.5, 1e300, -1e39], [0.5, float("inf"), "nan"], ["0.5", "1e999", "-inf"]],
        [pa.array([0.5, 1e300, -1e39]), pa.array([0.5, float("inf"), float("-inf")])],
    ),
    Case(
        "hex32",
        CATEGORICAL | {"parse": "hex32"},
        [0xC0FFEE, 10, None],
        [["00c0ffee", "A", ""]],
        [["00c0ffee", "a", None], ["c0ffee", "0A", ""]],
        [
            pa.array(["00c0ffee", "A", ""]),
            pa.array([0xC0FFEE, 10, None], pa.uint32()),
            decimals([str(0xC0FFEE), "10", None], 38, 0),
            pa.array([b"00c0ffee", b"a", None]),
        ],
    ),
    Case(
        "string",
        CATEGORICAL | {"parse": "string"},
        ["a b", "é", None],
        [["a b", "é", ""], ["a b", "é", "NaN"]],
        [["a b", "é", None], ["a b", "é", NAN], ["a b", "é", "-1"]],
        [
            pa.array(["a b", "é", None]),
            pa.array(["a b", "é", ""], pa.string_view()),
            pa.array(["a b", "é", "NaN"]).dictionary_encode(),
            pa.array([b"a b", "é".encode(), None]),
            pa.array([b"a b", "é".encode(), b"-1"]).dictionary_encode(),
        ],
    ),
    Case(
        "integers as text",
        CATEGORICAL | {"parse": "string"},
        [str(BIG), "17", None],
        [[str(BIG), "17", "-1"]],
        [[BIG, 17, None], [str(BIG), 17, -1], [BIG, "17", NAN]],
        [
            pa.array([BIG, 17, None], pa.uint64()),
            decimals([str(BIG), "17", "-1"], 38, 0),
            pa.array([str(BIG), "17", None]),
        ],
    ),
    Case(
        "booleans as text",
        CATEGORICAL | {"parse": "string"},
        ["true", "false", None],
        [["true", "false", ""]],
        [[True, False, None], ["true", False, None]],
        [pa.array([True, False, None])],
    ),
    Case(
        "UUIDs",
        CATEGORICAL | {"parse": "string"},
        [str(UUIDS[0]), str(UUIDS[1]), None],
        [[str(UUIDS[0]), str(UUIDS[1]), ""]],
        [[str(UUIDS[0]), str(UUIDS[1]), None]],
        [
            pa.array([UUIDS[0].bytes, UUIDS[1].bytes, None], pa.uuid()),
            pa.array([str(UUIDS[0]), str(UUIDS[1]), None]),
        ],
    ),
    Case(
        "no text",
        CATEGORICAL | {"parse": "string"},
        ["a", BAD, None],
        [],
        [["a", 1.5, None], ["a", [1], None]],
        [pa.array([b"a", b"\xff", None]), pa.array([b"a", b"\xc3", b"NaN"])],
    ),
    _unix("unix", 1, 1),
    _unix("unix_ms", 10**3, 1),
    _unix("unix_us", 10**6, 1),
    _unix("unix_ns", 10**9, 1999),
    Case(
        "fractions of seconds since 1970",
        TIME | {"parse": "unix"},
        [
            AT + timedelta(microseconds=123_457),
            AT,
            datetime(1969, 12, 31, 23, 59, 58, 500_000),
            BAD,
        ],
        [
            [f"{SECONDS}.123457", f"{SECONDS}.0", "-1.5", "1e300"],
            [f"{SECONDS}.1234567", str(SECONDS), "-1.5", "inf"],
        ],
        [
            [SECONDS + 0.123457, SECONDS, -1.5, 1e300],
            [f"{SECONDS}.123457", f"{SECONDS}.0", -1.5, "1.5 s"],
        ],
        [
            pa.array([SECONDS + 0.123457, SECONDS, -1.5, 2**53]),
            decimals([f"{SECONDS}.123457", f"{SECONDS}", "-1.5", "253402300801"], 20, 6),
            pa.array([f"{SECONDS}.123457", f"{SECONDS}", "-1.5", "x"]),
        ],
    ),
    Case(
        "fractions of milliseconds since 1970",
        TIME | {"parse": "unix_ms"},
        [AT + timedelta(microseconds=123_457)],
        [[f"{SECONDS}123.457"]],
        [[float(f"{SECONDS}123.457")]],
        [pa.array([float(f"{SECONDS}123.457")])],
    ),
    Case(
        "iso8601",
        TIME | {"parse": "iso8601"},
        [AT, AT + timedelta(seconds=1, microseconds=500_000), datetime(2026, 3, 1), None],
        [
            ["2026-03-01T10:15:00Z", "2026-03-01 10:15:01.5", "2026-03-01", ""],
            [
                "2026-03-01T12:15:00+02:00",
                "2026-03-01T04:45:01,500-0530",
                "2026-03-01T00:00z",
                "NaN",
            ],
            [
                "2026-03-01 10:15",
                "2026-03-01 10:15:01.500000999 +00",
                "2026-02-28T22:00:00-02",
                "",
            ],
            [
                "2026-03-01 10:15:00.000 UTC",
                "2026-03-01 10:15:01.5 UTC",
                "2026-03-01T00",
                "",
            ],
        ],
        [["2026-03-01T10:15:00Z", "2026-03-01 10:15:01.5", "2026-03-01", None]],
        [
            pa.array(["2026-03-01T10:15:00Z", "2026-03-01 10:15:01.5", "2026-03-01", None]),
            *times([AT, AT + timedelta(seconds=1.5), datetime(2026, 3, 1), None])[1:],
        ],
    ),
    Case(
        "no times",
        TIME | {"parse": "iso8601"},
        [AT, BAD, BAD],
        [
            ["2026-03-01T10:15Z", "2026-02-30", "2026-03-01T25:00"],
            ["2026-03-01T10:15Z", "20260301", "2026-03-01T10:15+24:00"],
            ["2026-03-01T10:15Z", "2026-03-01 10:15 UTC+1", "2026-03-01T1"],
            ["2026-03-01T10:15Z", "2026-03-01T10:15Zx", "03/01/2026"],
        ],
        [["2026-03-01T10:15Z", 20260301, "now"], ["2026-03-01T10:15Z", 1.5, True]],
        [pa.array(["2026-03-01T10:15Z", "2026-03-01T", "2026-03-01T10:1"])],
    ),
    Case(
        "timestamps",
        TIME | {"parse": "%Y-%m-%d %H:%M"},
        [AT, datetime(1969, 1, 1), None],
        [["2026-03-01 10:15", "1969-01-01 00:00", ""]],
        [["2026-03-01 10:15", "1969-01-01 00:00", None]],
        times([AT, datetime(1969, 1, 1), None]),
    ),
    Case(
        "dates",
        TIME | {"parse": "%Y-%m-%d"},
        [datetime(2026, 3, 1), datetime(1969, 1, 1), None],
        [["2026-03-01", "1969-01-01", ""]],
        [["2026-03-01", "1969-01-01", None]],
        [
            pa.array([date(2026, 3, 1), date(1969, 1, 1), None]),
            pa.array([date(2026, 3, 1), date(1969, 1, 1), None], pa.date64()),
        ],
    ),
    Case(
        "local time",
        LOCAL,
        UTC_TIMES,
        [LOCAL_TIMES],
        [LOCAL_TIMES],
        [
            pa.array(LOCAL_TIMES),
            *(
                pa.array([datetime.fromisoformat(one) for one in LOCAL_TIMES], pa.timestamp(unit))
                for unit in ("s", "ms", "us", "ns")
            ),
        ],
    ),
    Case(
        "local time by iso8601",
        TIME | {"parse": "iso8601", "zone": "Europe/Berlin"},
        [*UTC_TIMES, datetime(2026, 7, 1, 12), datetime(2026, 7, 1, 13)],
        [
            [*LOCAL_TIMES, "2026-07-01T12:00Z", "2026-07-01T12:00:00-01:00"],
            [*LOCAL_TIMES, "2026-07-01 12:00 UTC", "2026-07-01T15+02"],
        ],
        [[*LOCAL_TIMES, "2026-07-01T12:00Z", "2026-07-01T12:00:00-01:00"]],
        [pa.array([*LOCAL_TIMES, "2026-07-01T12:00Z", "2026-07-01T12:00:00-01:00"])],
    ),
    *(
        Case(
            f"no value of {column['kind']} {column['parse']}",
            column,
            EMPTY,
            [["", "", ""], ["NaN", "", "-1"]],
            [EMPTY, ["", None, "NaN"], [NAN, NAN, NAN]],
            [pa.nulls(3), pa.nulls(3, pa.string()), pa.array(["NaN", "", None])],
        )
        for column in (
            DENSE | {"parse": "integer"},
            DENSE | {"parse": "float"},
            CATEGORICAL | {"parse": "hex32"},
            CATEGORICAL | {"parse": "integer"},
            CATEGORICAL | {"parse": "string"},
            TIME | {"parse": "unix"},
            TIME | {"parse": "iso8601"},
            LOCAL,
        )
    ),
]


def expected_frame(case: Case) -> pl.DataFrame:
    """Return the typed column of a case without its bad rows."""
    good = [value for value in case.expected if value is not BAD]
    dtypes = {
        "label": pl.UInt8,
        "integer": pl.Int64,
        "float": pl.Float64,
        "hex32": pl.UInt32,
        "string": pl.String,
    }
    kind = case.column["kind"]
    dtype = pl.Datetime("us") if kind == "time" else dtypes[case.column.get("parse", kind)]
    return pl.DataFrame({"label" if case.is_label else "x": pl.Series(good, dtype=dtype)})
