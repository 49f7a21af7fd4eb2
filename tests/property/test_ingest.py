"""Each line of a log, whatever its bytes, becomes one row or one bad row with these bytes.

A compressed log gives the same shard as its text.
"""

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.artifact import ListedFile
from features.ingest.readers import delimited_text
from features.ingest.readers.blocks import Block
from features.ingest.readers.row_validation import BAD_ROWS_FILE, number_lines, validate_rows
from features.ingest.shard import SHARD_FILE, Job, ingest_file, recipe_hash
from features.schema.schema import Schema
from tests.factories.compressed import COMPRESS
from tests.factories.raw_logs import CSV, JSON, ROW, csv_line, parse_lines
from tests.factories.support import CRITEO, line

VALUES = [
    "",
    "0",
    "-2",
    "17",
    "99999999999",
    "1.5",
    "1e5",
    "abc",
    "0000000a",
    "ffffffff",
    "+1",
    "é",
    '"',
    '""',
    '"a"',
    '"0,1"',
    '"a""b"',
    " ",
    "NULL",
]
VALUES += [
    "-",
    "-0",
    "nan",
    "2024-02-29 23",
    "1700000000",
    "123456789012345678",
    "a text of more than twelve bytes",
    "0000000000000017",
]
TOKENS = st.sampled_from(VALUES)
JSON_VALUES = st.one_of(
    TOKENS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.just([1]),
    st.just({"a": 1}),
    st.text(max_size=4),
)


def fields(separator: str, count: int) -> st.SearchStrategy[str]:
    """Draw lines of fields that may not fit the schema."""
    return st.lists(TOKENS, min_size=count, max_size=count).map(separator.join)


def json_lines_of(values: st.SearchStrategy[object]) -> st.SearchStrategy[str]:
    """Draw ROW as JSON with some values changed."""
    return st.dictionaries(st.sampled_from([*ROW, "other"]), values, max_size=4).map(
        lambda changes: json.dumps(ROW | changes)
    )


GOOD = {
    "criteo": st.builds(
        line,
        st.sampled_from("01"),
        st.sampled_from(["", "3", "-1"]),
        st.sampled_from(["", "0000000a", "68fd1e64"]),
    ),
    "csv": st.builds(
        lambda a, b, c: csv_line(stock=a, words=b, site=c),
        *[st.sampled_from(["", "3", '"1"', '"a,b"', "NULL"])] * 3,
    ),
    "json": json_lines_of(st.one_of(st.none(), st.sampled_from(["3", "NULL", "", 3, True]))),
}
ANY = {
    "criteo": fields("\t", len(CRITEO.names)),
    "csv": fields(",", len(CSV.names)),
    "json": json_lines_of(JSON_VALUES),
}
SCHEMAS = {"criteo": CRITEO, "csv": CSV, "json": JSON}
INSERTS = [
    b"\t",
    b",",
    b'"',
    b"\0",
    b"\r",
    b"\xff",
    b"99999999999",
    b"\t\t",
    b"{",
    b"}",
    b"-",
    b"\\",
    b"Inf",
    b"\xef\xbb\xbf",
]


@st.composite
def mutated(draw: st.DrawFn, good: st.SearchStrategy[str]) -> bytes:
    """Draw a good line in which some bytes are changed, removed or added."""
    text = bytearray(draw(good).encode())
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text) - 1)) if text else 0
        match draw(st.sampled_from(["flip", "drop", "add", "cut"])):
            case "flip" if text:
                text[place] = draw(st.integers(0, 255))
            case "drop":
                del text[place : place + 1]
            case "add":
                text[place:place] = draw(st.sampled_from(INSERTS))
            case "cut":
                del text[place:]
    return bytes(text)


def lines_of(name: str) -> st.SearchStrategy[list[bytes]]:
    """Draw lines of a log: good ones, mutated ones and any bytes."""
    good, other = GOOD[name], ANY[name]
    some = st.one_of(
        good.map(str.encode), mutated(good), other.map(str.encode), st.binary(max_size=20)
    )
    return st.lists(some.map(lambda line: line.replace(b"\n", b" ")), min_size=1, max_size=12)


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_line_is_a_row_or_a_bad_row_independent_of_other_lines(name: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(lines_of(name), st.sampled_from(["fill", "quarantine"]))
    def check(lines: list[bytes], short_rows: str) -> None:
        schema = SCHEMAS[name]
        together = parse_lines(lines, schema, short_rows=short_rows)
        assert sorted([*together.line_numbers, *together.bad_rows["line"]]) == list(
            range(1, len(lines) + 1)
        )
        assert together.bad_rows["raw"].to_list() == [
            lines[number - 1] for number in together.bad_rows["line"]
        ]
        assert together.bad_rows["reason"].null_count() == 0
        alone = [
            parse_lines([line], schema, first_line=number, short_rows=short_rows)
            for number, line in enumerate(lines, 1)
        ]
        assert together.rows.equals(pl.concat([one.rows for one in alone]))
        assert together.bad_rows.equals(pl.concat([one.bad_rows for one in alone]))

    check()


@pytest.mark.parametrize("name", ["criteo", "csv"])
def test_splitting_at_once_gives_the_same_as_line_by_line(name: str) -> None:
    """Rows, bad rows and reasons do not depend on how a block is split."""

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.one_of(GOOD[name], ANY[name]), min_size=1, max_size=12))
    def check(lines: list[str]) -> None:
        schema = SCHEMAS[name]
        block = Block("".join(f"{line}\n" for line in lines).encode(), 1, len(lines), 0)
        layout = delimited_text.Layout.of_log(
            schema, schema.names, labelled=True, short_rows="quarantine"
        )
        columns, reasons = delimited_text.split_line_by_line(block.lines(), layout)
        expected = validate_rows(
            columns, layout.columns, number_lines(1, len(lines)), block.lines_at, 0, reasons
        )
        parsed = delimited_text.parse_block(block, layout)
        assert parsed.rows.equals(expected.rows)
        assert parsed.bad_rows.equals(expected.bad_rows)

    check()


@pytest.mark.parametrize(("text", "schema"), [(line(), CRITEO), (csv_line(), CSV)])
def test_a_good_line_can_be_split_at_once(text: str, schema: Schema) -> None:
    """If it could not, the test above would compare splitting line by line with itself."""
    layout = delimited_text.Layout.of_log(
        schema, schema.names, labelled=True, short_rows="quarantine"
    )
    assert delimited_text.split_block(f"{text}\n".encode(), 1, layout) is not None


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_compressed_log_gives_the_shard_of_its_text(name: str, tmp_path: Path) -> None:
    """The bytes of the rows and of the bad rows are the same, with a line of each kind."""
    schema = SCHEMAS[name]
    recipe = recipe_hash(schema, "fill")
    good = {"criteo": line(), "csv": csv_line(), "json": json.dumps(ROW)}[name]

    def shard_of(data: bytes) -> list[bytes]:
        log = tmp_path / "log"
        log.write_bytes(data)
        job = Job("log", log, ListedFile.of(log), schema, "fill", recipe, tmp_path / "shards")
        ingest_file(job, lambda rows, num_bytes: None)
        files = [job.shard_dir / name for name in (SHARD_FILE, BAD_ROWS_FILE)]
        return [file.read_bytes() for file in files if file.exists()]

    @settings(max_examples=15, deadline=None)
    @given(lines_of(name))
    def check(lines: list[bytes]) -> None:
        text = b"\n".join([good.encode(), *lines])
        expected = shard_of(text)
        for compress in COMPRESS.values():
            assert shard_of(compress(text)) == expected

    check()
