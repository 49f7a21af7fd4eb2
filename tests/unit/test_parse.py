"""A block of lines becomes rows and bad rows: which, and why."""

import polars as pl
import pytest

from features.lines import Block
from features.parse import parse_block
from tests.support import CRITEO, line

GOOD = line()


def parse(*lines: str | bytes, labelled: bool = True, fill: bool = False):
    text = b"".join((text if isinstance(text, bytes) else text.encode()) + b"\n" for text in lines)
    return parse_block(Block(text, 5, len(lines), 0), CRITEO, labelled=labelled, fill_short_rows=fill)


def test_values():
    parsed = parse(line("1", "-2", "ffffffff", I1="", C1=""), line("0", "17", "0"))
    assert parsed.bad.is_empty()
    assert parsed.lines.to_list() == [5, 6]
    assert parsed.rows.dtypes == [pl.UInt8] + [pl.Int64] * len(CRITEO.dense) + [pl.UInt32] * len(CRITEO.categorical)
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
        (line(I3="1.5"), "I3: '1.5' is not an integer"),
        (line(I3=" 1"), "I3: ' 1' is not an integer"),
        (line(I3="99999999999999999999"), "I3: '99999999999999999999' is not an integer"),
        (line(C4="xyz"), "C4: 'xyz' is not up to 8 hex digits"),
        (line(C4="1ffffffff"), "C4: '1ffffffff' is not up to 8 hex digits"),
        (line(C4="a\r"), "C4: 'a\r' is not up to 8 hex digits"),
        (line(C26="a\0"), "C26: 'a\0' is not up to 8 hex digits"),
        (line(C26='"a"'), "C26: '\"a\"' is not up to 8 hex digits"),
        (line() + "\t1", "41 columns, 40 expected"),
        (line().removesuffix("\t0000000a"), "39 columns, 40 expected"),
        ("", "1 columns, 40 expected"),
        (line().encode().replace(b"0000000a", b"\xff", 1), "not UTF-8"),
    ],
)
@pytest.mark.parametrize("neighbour", [GOOD, line(label="3"), "1\t2", GOOD + "\t"], ids=["good", "bad label", "short", "long"])
def test_bad_line_among_others(bad, reason, neighbour):
    """The reason does not depend on what else stands in the block, so neither does the path the block takes."""
    parsed = parse(GOOD, bad, neighbour, GOOD)
    assert parsed.rows["label"].to_list() == [0] * parsed.rows.height
    assert parsed.bad.row(0) == (6, reason, bad if isinstance(bad, bytes) else bad.encode())
    assert parsed.lines.to_list() == ([5, 7, 8] if neighbour == GOOD else [5, 8])
    assert parsed.bad.height == (1 if neighbour == GOOD else 2)


def test_a_short_and_a_long_line_do_not_make_up_for_each_other():
    parsed = parse(GOOD, GOOD.removesuffix("\t0000000a"), GOOD + "\t0000000a")
    assert parsed.bad["line"].to_list() == [6, 7]


def test_short_rows_filled():
    short = line(C25="", C26="").rstrip("\t")
    parsed = parse(GOOD, short, fill=True)
    assert parsed.bad.is_empty()
    assert parsed.rows.select("C24", "C25", "C26").rows() == [(10, 10, 10), (10, None, None)]
    assert parse(GOOD, short).bad["reason"].to_list() == ["38 columns, 40 expected"]


def test_short_row_without_label_is_bad_even_when_filled():
    assert parse(GOOD, "", fill=True).bad["reason"].to_list() == ["label: '' is not 0 or 1"]


def test_unlabelled():
    parsed = parse(GOOD.partition("\t")[2], labelled=False)
    assert parsed.rows.columns == [*CRITEO.dense, *CRITEO.categorical]
    assert parse(GOOD, labelled=False).bad["reason"].to_list() == ["40 columns, 39 expected"]


def test_long_row():
    parsed = parse(GOOD, line(C1="a" * 10_000_000), GOOD)
    assert parsed.lines.to_list() == [5, 7]
    assert len(parsed.bad["raw"][0]) > 10_000_000
    assert len(parsed.bad["reason"][0]) < 100
