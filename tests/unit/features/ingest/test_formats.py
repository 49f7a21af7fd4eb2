"""CSV with quotes and headers, Parquet, unlabelled logs and real rows: values and bad rows."""

import csv
import gzip
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.files import DataError
from features.ingest.readers.column_types import Column
from features.ingest.readers.fields import find_fields
from features.ingest.readers.read_log import has_label, max_rows, read_log
from features.schema.schema import Schema, load_schema
from tests.factories.raw_logs import (
    CSV,
    CSV_WITH_HEADER,
    JSON,
    NULLS,
    PARQUET,
    READ,
    ROW,
    TIMES,
    TYPES,
    csv_line,
    json_line,
    parse_lines,
)
from tests.factories.support import real_log


def read(path: Path, schema: Schema, labelled: bool = True) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows and the bad rows of a log."""
    parsed = list(read_log(path, schema, labelled=labelled, short_rows="quarantine"))
    return pl.concat([one.rows for one in parsed]), pl.concat([one.bad_rows for one in parsed])


def write(path: Path, lines: list[str]) -> Path:
    """Write the lines of a log."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_csv_row() -> None:
    parsed = parse_lines(
        [
            csv_line().encode(),
            csv_line(clicked="0", **NULLS).encode(),
            csv_line(stock='"NULL"').encode(),
        ],
        CSV,
    )
    assert parsed.bad_rows.is_empty()
    assert parsed.rows.dtypes == TYPES
    assert parsed.rows.row(0) == READ
    assert parsed.rows.row(1) == (0, *[None] * len(NULLS))
    assert parsed.rows["stock"].to_list() == [-3, None, None]


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ('"a"', "a"),
        ('"a,b"', "a,b"),
        ('""', None),
        ('"NULL"', None),
        ('"a ""b"" c"', 'a "b" c'),
        ('""""', '"'),
        ('a"b"', 'a"b"'),
        ("thirteen long", "thirteen long"),
        ('"twelve long."', "twelve long."),
        ("é", "é"),
        ("naïve, no".replace(",", ""), "naïve no"),
        (" a ", " a "),
    ],
)
@pytest.mark.parametrize(
    "neighbour", [csv_line(), csv_line(words='"x""y"')], ids=["plain", "doubled quotes"]
)
def test_quotes(field: str, words: str | None, neighbour: str) -> None:
    parsed = parse_lines(
        [neighbour.encode(), csv_line(words=field).encode(), csv_line(site=field).encode()], CSV
    )
    assert parsed.bad_rows.is_empty()
    assert parsed.rows["words"].to_list()[1:] == [words, READ[7]]
    assert parsed.rows["site"].to_list()[1:] == [READ[6], words]


def csv_with_nulls(*tokens: str) -> Schema:
    """Return the CSV schema with other null tokens."""
    return CSV.model_copy(
        update={"format": CSV.format.model_copy(update={"null_tokens": list(tokens)})}
    )


def test_a_null_token_may_look_like_a_number() -> None:
    lines = [csv_line(stock="-1", code="0000000a").encode(), csv_line(stock="1", code="a").encode()]
    assert parse_lines(lines, csv_with_nulls("-1", "0000000a")).rows.select(
        "stock", "code"
    ).rows() == [(None, None), (1, 10)]


@pytest.mark.parametrize("tokens", [["NULL"], ["-1"], []])
def test_an_empty_field_is_null_only_if_the_schema_says_so(tokens: list[str]) -> None:
    parsed = parse_lines(
        [csv_line().encode(), csv_line(stock="", words="").encode()], csv_with_nulls(*tokens)
    )
    assert parsed.bad_rows["reason"].to_list() == ["stock: '' is not an integer of 64 bits"]
    assert parse_lines([csv_line(words="").encode()], csv_with_nulls(*tokens)).rows[
        "words"
    ].to_list() == [""]


def test_quotes_around_whole_fields_are_found_at_once() -> None:
    """Only a block with quotes inside fields is split line by line."""
    text = "".join(f"{csv_line()}\n" for _ in range(3)).encode()
    assert find_fields(text, 3, len(CSV.names), ",", '"') is not None
    assert find_fields(text.replace(b"red", b'r""d'), 3, len(CSV.names), ",", '"') is None


@pytest.mark.parametrize("text", ["2024-02-29 23:00:01.5", "2024-02-29 23:00:01.123456"])
def test_a_fraction_of_a_second_is_read_as_strptime_reads_it(text: str) -> None:
    pattern = "%Y-%m-%d %H:%M:%S.%f"
    column = Column("at", "time", pattern)
    conversion = column.conversion_from(pl.String())
    assert conversion is not None
    found = pl.DataFrame({"at": [text, "2024-02-29 23:00:01", "2024-02-29"]}).select(conversion)
    # A time without a fraction is what Python writes when the fraction is zero.
    expected = [datetime.strptime(text, pattern), datetime(2024, 2, 29, 23, 0, 1), None]
    assert found["at"].to_list() == expected


SECONDS = "seconds since 1970 (other units: unix_ms, unix_us, unix_ns)"
BAD_CSV = [
    (
        csv_line(words='"open'),
        "a quoted field is not closed in its line (line breaks inside quotes are not supported)",
    ),
    (csv_line(words='"a"b'), "quotes that fit no field: ',' expected after '\"'"),
    (csv_line(words="a,b"), "12 columns, 11 expected"),
    (csv_line(clicked="yes"), "clicked: 'yes' is not 0 or 1"),
    (csv_line(at="2024-02-30 23"), "at: '2024-02-30 23' is not a time like %Y-%m-%d %H"),
    (csv_line(stamp="1.5 s"), f"stamp: '1.5 s' is not {SECONDS}"),
    (csv_line(stamp="999999999999999"), f"stamp: '999999999999999' is not {SECONDS}"),
    (csv_line(price="nan"), "price: 'nan' is not a finite number up to 3.4e+38"),
    (csv_line(price="1e999"), "price: '1e999' is not a finite number up to 3.4e+38"),
    (csv_line(price="1e300"), "price: '1e300' is not a finite number up to 3.4e+38"),
    (csv_line(price="-1e39"), "price: '-1e39' is not a finite number up to 3.4e+38"),
    (csv_line(age="1.5"), "age: '1.5' is not an integer of 64 bits"),
    (csv_line(code="no hex"), "code: 'no hex' is not up to 8 hex digits"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_CSV)
def test_bad_csv(bad: str, reason: str) -> None:
    parsed = parse_lines([csv_line().encode(), bad.encode(), csv_line().encode()], CSV)
    assert parsed.line_numbers.to_list() == [1, 3]
    assert parsed.bad_rows.rows() == [(2, reason, bad.encode())]


def parquet_frame(**columns: pl.Series) -> pl.DataFrame:
    """Return three rows as Parquet contains them, with some columns replaced."""
    frame = pl.DataFrame([ROW | {"words": READ[7]}] * 3)
    return frame.with_columns(column.alias(name) for name, column in columns.items())


def test_parquet_rows(tmp_path: Path) -> None:
    typed = {
        "at": pl.Series([TIMES[0]] * 3, dtype=pl.Datetime("ns")),
        "clicked": pl.Series([True, True, True]),
    }
    floats = {
        "stock": pl.Series([-3.0] * 3),
        "site": pl.Series([READ[6]] * 3, dtype=pl.Categorical),
        "price": pl.Series([12.5] * 3).cast(pl.Decimal(10, 2)),
    }
    as_text = {
        "stock": pl.Series(["-3"] * 3),
        "clicked": pl.Series(["1"] * 3),
        "stamp": pl.Series(["1700000000"] * 3),
    }
    for changes in (
        {},
        typed,
        floats,
        as_text,
        {"code": pl.Series([0x00C0FFEE] * 3, dtype=pl.UInt32)},
    ):
        parquet_frame(**changes).write_parquet(tmp_path / "log")
        rows, bad = read(tmp_path / "log", PARQUET)
        assert bad.is_empty()
        assert rows.dtypes == TYPES
        assert rows.rows() == [READ] * 3


def test_bad_parquet_rows(tmp_path: Path) -> None:
    frame = parquet_frame(
        clicked=pl.Series([1, 2, None]),
        stock=pl.Series([1.0, 1.5, None]),
        price=pl.Series([1.0, float("inf"), 2.0]),
        code=pl.Series(["a", "x", ""]),
    )
    good = parquet_frame()
    pl.concat([good, frame], how="vertical_relaxed").write_parquet(tmp_path / "log")
    rows, bad = read(tmp_path / "log", PARQUET)
    assert rows.height == 4
    assert bad["line"].to_list() == [5, 6]
    assert bad["reason"].to_list() == ["clicked: '2' is not 0 or 1", "clicked: '' is not 0 or 1"]
    assert json.loads(bad["raw"][0])["code"] == "x"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            parquet_frame().drop("shop", "code"),
            "no column 'code', 'shop'; it has 'id', .*rename or remove",
        ),
        (
            parquet_frame(code=pl.Series([1.5] * 3)),
            "column code is double, which cannot be up to 8 hex digits",
        ),
        (
            parquet_frame(shop=pl.Series([[1]] * 3)),
            "column shop is large_list.*, which cannot be an integer",
        ),
    ],
)
def test_parquet_of_other_columns(tmp_path: Path, frame: pl.DataFrame, message: str) -> None:
    frame.write_parquet(tmp_path / "log")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "log", PARQUET)


def test_parquet_with_text_that_is_not_utf8(tmp_path: Path) -> None:
    words = pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 1, 2, 3], np.int32)), pa.py_buffer(b"a\xffb")
    )
    table = parquet_frame().drop("words").to_arrow().append_column("words", words)
    pq.write_table(table, tmp_path / "log")
    with pytest.raises(DataError, match=r"log: broken Parquet after row 0 \(.*UTF8"):
        read(tmp_path / "log", PARQUET)


@pytest.mark.parametrize("schema", [PARQUET, JSON, CSV])
def test_files_of_another_format_are_refused(tmp_path: Path, schema: Schema) -> None:
    other = {"parquet": b"no Parquet", "json_lines": b"a,b\n", "text": b"{}\n"}[schema.format.kind]
    (tmp_path / "log").write_bytes(other)
    with pytest.raises(
        DataError, match=r"is not a Parquet file|none of its first 1 lines can be read; line 1: "
    ):
        read(tmp_path / "log", schema)
    parquet_frame().write_parquet(tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-50])
    with pytest.raises(DataError, match="cut"):
        read(tmp_path / "cut", schema)


HEADER = ",".join(CSV.names)


def test_header(tmp_path: Path) -> None:
    mixed = CSV.names[::-1]
    row = dict(zip(CSV.names, next(csv.reader([csv_line()])), strict=True)) | {
        "words": '"red, big shoes"'
    }
    quoted, turned = (
        ",".join(f'"{name}"' for name in CSV.names),
        (",".join(mixed), ",".join(row[name] for name in mixed)),
    )
    for header, line in ((HEADER, csv_line()), (quoted, csv_line()), turned):
        rows, bad = read(write(tmp_path / "log", [header, line, line]), CSV_WITH_HEADER)
        assert (rows.rows(), bad.height) == ([READ] * 2, 0)
    _, bad = read(write(tmp_path / "log", [HEADER, csv_line(), ""]), CSV_WITH_HEADER)
    assert bad["line"].to_list() == [3]


def test_a_header_may_lack_columns_that_are_ignored(tmp_path: Path) -> None:
    """The columns of a log may have changed in the course of time."""
    log = write(tmp_path / "log", [HEADER, csv_line(), csv_line()])
    without = pl.read_csv(log, infer_schema=False).drop("id")
    without.write_csv(log)
    rows, bad = read(log, CSV_WITH_HEADER)
    assert (rows.rows(), bad.height) == ([READ] * 2, 0)
    assert max_rows(log, CSV_WITH_HEADER, "quarantine") >= 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [csv_line(), csv_line()],
            "line 1: a header with the schema's 11 columns expected; missing: 'clicked', .*; "
            "unknown: 'row-1', '1', ",
        ),
        ([HEADER.replace("shop", "store"), csv_line()], "missing: 'shop'; unknown: 'store'. In"),
        ([HEADER + ",shop", csv_line()], "missing: none; unknown: none; twice: 'shop'. Give"),
        (
            [f",{HEADER},Unnamed: 0", csv_line()],
            r"missing: none; unknown: '', 'Unnamed: 0'. .* "
            r"""such as - {kind: ignored, names: \["", "Unnamed: 0"\]}$""",
        ),
        ([HEADER], "log has no rows"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "log", lines), CSV_WITH_HEADER)


def without_label(line: str) -> str:
    """Remove the label from a CSV line."""
    return line.replace("row-1,1,", "row-1,", 1)


def test_unlabelled_logs_of_every_format(tmp_path: Path) -> None:
    unlabelled = {name: value for name, value in ROW.items() if name != "clicked"} | {
        "words": READ[7]
    }
    logs = [
        (CSV, [csv_line()] * 3, [without_label(csv_line())] * 3),
        (
            CSV_WITH_HEADER,
            [HEADER, *[csv_line()] * 3],
            [HEADER.replace("clicked,", ""), *[without_label(csv_line())] * 3],
        ),
        (JSON, [json_line(words=READ[7])] * 3, [json.dumps(unlabelled)] * 3),
    ]
    for schema, with_label, without in logs:
        assert has_label(write(tmp_path / "log", with_label), schema)
        assert read(tmp_path / "log", schema)[0].rows() == [READ] * 3
        assert not has_label(write(tmp_path / "log", without), schema)
        assert read(tmp_path / "log", schema, labelled=False)[0].rows() == [READ[1:]] * 3
    parquet_frame().write_parquet(tmp_path / "log")
    assert has_label(tmp_path / "log", PARQUET)
    parquet_frame().drop("clicked").write_parquet(tmp_path / "log")
    assert not has_label(tmp_path / "log", PARQUET)
    assert read(tmp_path / "log", PARQUET, labelled=False)[0].rows() == [READ[1:]] * 3


@pytest.mark.parametrize("zipped", [False, True])
def test_real_avazu_rows(tmp_path: Path, zipped: bool) -> None:
    source = real_log("avazu/avazu_head_9k.csv")
    expected = list(csv.DictReader(source.read_text().splitlines()))
    log = tmp_path / "log"
    log.write_bytes(gzip.compress(source.read_bytes()) if zipped else source.read_bytes())
    schema = load_schema("avazu")
    rows, bad = read(log, schema)
    assert (rows.height, bad.height) == (len(expected), 0) == (8999, 0)
    for name in schema.categorical:
        base = 16 if rows.schema[name] == pl.UInt32 else 10
        assert rows[name].to_list() == [int(row[name], base) for row in expected]
    assert rows[schema.label].to_list() == [int(row[schema.label]) for row in expected]
    for name in schema.time:
        assert rows[name].to_list() == [
            datetime.strptime(row[name], "%y%m%d%H") for row in expected
        ]
