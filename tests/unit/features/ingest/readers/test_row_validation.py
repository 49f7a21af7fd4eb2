"""Which lines of a text log are bad rows, and why."""

import polars as pl
import pytest

from features.ingest.readers.row_validation import MAX_RAW_BYTES, ValidatedRows
from tests.factories.raw_logs import parse_lines
from tests.factories.support import CRITEO, line

GOOD = line()


def parse(*lines: str | bytes, labelled: bool = True, fill: bool = False) -> ValidatedRows:
    """Read lines of a Criteo log, the first of which is line 5."""
    encoded = [text if isinstance(text, bytes) else text.encode() for text in lines]
    return parse_lines(
        encoded,
        CRITEO,
        first_line=5,
        labelled=labelled,
        short_rows="fill" if fill else "quarantine",
    )


def test_values() -> None:
    parsed = parse(line("1", "-2", "ffffffff", I1="", C1=""), line("0", "17", "0"))
    assert parsed.bad_rows.is_empty()
    assert parsed.line_numbers.to_list() == [5, 6]
    assert parsed.rows.dtypes == [pl.UInt8] + [pl.Int64] * len(CRITEO.dense) + [pl.UInt32] * len(
        CRITEO.categorical
    )
    assert parsed.rows["label"].to_list() == [1, 0]
    assert parsed.rows["I1"].to_list() == [None, 17]
    assert parsed.rows["I2"].to_list() == [-2, 17]
    assert parsed.rows["C1"].to_list() == [None, 0]
    assert parsed.rows["C2"].to_list() == [0xFFFFFFFF, 0]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line(label="2"), "label: '2' is not 0 or 1"),
        (line(label=""), "label: '' is not 0 or 1"),
        (line(I3="1.5"), "I3: '1.5' is not an integer of 64 bits"),
        (line(I3=" 1"), "I3: ' 1' is not an integer of 64 bits"),
        (
            line(I3="99999999999999999999"),
            "I3: '99999999999999999999' is not an integer of 64 bits",
        ),
        (line(C4="xyz"), "C4: 'xyz' is not up to 8 hex digits"),
        (line(C4="1ffffffff"), "C4: '1ffffffff' is not up to 8 hex digits"),
        (line(C4="00000000a"), "C4: '00000000a' is not up to 8 hex digits"),
        (line(C4="+a"), "C4: '+a' is not up to 8 hex digits"),
        (line(C4="éa"), "C4: 'éa' is not up to 8 hex digits"),
        (line(C4="0000000g"), "C4: '0000000g' is not up to 8 hex digits"),
        (line(I3="-"), "I3: '-' is not an integer of 64 bits"),
        (line(I3="12a"), "I3: '12a' is not an integer of 64 bits"),
        (line(I3="0x1"), "I3: '0x1' is not an integer of 64 bits"),
        (line(C4="a\r"), r"C4: 'a\r' is not up to 8 hex digits"),
        (line(C26="a\0"), r"C26: 'a\x00' is not up to 8 hex digits"),
        (line(C26='"a"'), "C26: '\"a\"' is not up to 8 hex digits"),
        (line() + "\t1", "41 columns, 40 expected"),
        (line().removesuffix("\t0000000a"), "39 columns, 40 expected"),
        ("", "1 columns, 40 expected"),
        (line().encode().replace(b"0000000a", b"\xff", 1), "not UTF-8"),
    ],
)
@pytest.mark.parametrize(
    "neighbour",
    [GOOD, line(label="3"), "1\t2", GOOD + "\t"],
    ids=["good", "bad label", "short", "long"],
)
def test_a_bad_line_has_its_reason_whatever_its_neighbours(
    bad: str | bytes, reason: str, neighbour: str
) -> None:
    """The reason does not depend on the other lines of the block."""
    parsed = parse(GOOD, bad, neighbour, GOOD)
    assert parsed.rows["label"].to_list() == [0] * parsed.rows.height
    assert parsed.bad_rows.row(0) == (6, reason, bad if isinstance(bad, bytes) else bad.encode())
    assert parsed.line_numbers.to_list() == ([5, 7, 8] if neighbour == GOOD else [5, 8])
    assert parsed.bad_rows.height == (1 if neighbour == GOOD else 2)


def test_a_short_and_a_long_line_do_not_compensate_each_other() -> None:
    parsed = parse(GOOD, GOOD.removesuffix("\t0000000a"), GOOD + "\t0000000a")
    assert parsed.bad_rows["line"].to_list() == [6, 7]


def test_missing_fields_of_a_short_row_are_null_with_fill() -> None:
    short = line(C25="", C26="").rstrip("\t")
    parsed = parse(GOOD, short, fill=True)
    assert parsed.bad_rows.is_empty()
    assert parsed.rows.select("C24", "C25", "C26").rows() == [(10, 10, 10), (10, None, None)]
    assert parse(GOOD, short).bad_rows["reason"].to_list() == ["38 columns, 40 expected"]


def test_short_row_without_label_is_bad_even_when_filled() -> None:
    assert parse(GOOD, "", fill=True).bad_rows["reason"].to_list() == ["label: '' is not 0 or 1"]


def test_unlabelled() -> None:
    parsed = parse(GOOD.partition("\t")[2], labelled=False)
    assert parsed.rows.columns == [*CRITEO.dense, *CRITEO.categorical]
    assert parse(GOOD, labelled=False).bad_rows["reason"].to_list() == ["40 columns, 39 expected"]


def test_the_reason_for_a_very_long_value_is_short() -> None:
    parsed = parse(GOOD, line(C1="a" * 10_000_000), GOOD)
    assert parsed.line_numbers.to_list() == [5, 7]
    assert len(parsed.bad_rows["raw"][0]) == MAX_RAW_BYTES
    assert len(parsed.bad_rows["reason"][0]) < 100


INTEGERS = [
    "0",
    "-0",
    "7",
    "-7",
    "00000000",
    "12345678",
    "-12345678",
    "123456789",
    "-9999999999999999",
    "9999999999999999",
    "12345678901234567",
]
INTEGERS += ["9223372036854775807", "-9223372036854775808", "0000000000000000000001", "+5"]


@pytest.mark.parametrize("value", INTEGERS)
def test_integers_of_any_length(value: str) -> None:
    """Integers of up to 8 digits, up to 16 and more are read in different ways."""
    assert parse(line(I3=value)).rows["I3"].item() == int(value)
    assert parse(GOOD, line(I3=value), GOOD).rows["I3"].to_list() == [1, int(value), 1]


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "f",
        "F0",
        "abc",
        "ABCD",
        "12345",
        "abcdef",
        "0ABCDEF",
        "ffffffff",
        "00000000",
        "9aF00Fa9",
    ],
)
def test_hex_of_any_length(value: str) -> None:
    parsed = parse(line(C1=value, C26=value), line())
    assert parsed.rows.select("C1", "C2", "C26").rows() == [
        (int(value, 16), 10, int(value, 16)),
        (10, 10, 10),
    ]


@pytest.mark.parametrize(
    "other",
    [chr(code) for code in range(1, 128) if chr(code) not in "\n\t\r0123456789abcdefABCDEF-"],
)
def test_only_digits_are_digits(other: str) -> None:
    """Characters with codes beside those of the digits, or with one bit changed, are refused."""
    bad = parse(
        line(C1=other),
        line(I1=other),
        line(C1="a" + other),
        line(I1=other + "1"),
        line(I1="-" + other),
        GOOD,
    ).bad_rows
    expected = [1, 2, 3, 4, 5] if other != "+" else [1, 2, 3, 5]
    assert bad["line"].to_list() == [number + 4 for number in expected]
