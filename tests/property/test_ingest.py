"""Whatever is done to a log's lines, each comes out once: as the row it was, or as a bad row with its bytes."""

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from features.lines import Block
from features.parse import parse_block
from tests.support import CRITEO, line

TOKENS = st.sampled_from(["", "0", "-2", "17", "99999999999", "1.5", "abc", "0000000a", "ffffffff", "+1", "é", '"', " ", "NULL"])
FIELDS = st.lists(TOKENS, min_size=len(CRITEO.names), max_size=len(CRITEO.names)).map("\t".join)
GOOD = st.builds(line, st.sampled_from("01"), st.sampled_from(["", "3", "-1"]), st.sampled_from(["", "0000000a", "68fd1e64"]))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good line with bytes flipped, or fields dropped, added or swapped."""
    text = bytearray(draw(GOOD).encode())
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text) - 1)) if text else 0
        match draw(st.sampled_from(["flip", "drop", "add", "cut"])):
            case "flip" if text:
                text[place] = draw(st.integers(0, 255))
            case "drop":
                del text[place : place + 1]
            case "add":
                text[place:place] = draw(st.sampled_from([b"\t", b"\0", b"\r", b"\xff", b"99999999999", b"\t\t"]))
            case "cut":
                del text[place:]
    return bytes(text).replace(b"\n", b" ")


LINES = st.lists(st.one_of(GOOD.map(str.encode), mutated(), FIELDS.map(str.encode), st.binary(max_size=20)), min_size=1, max_size=12).map(
    lambda lines: [line.replace(b"\n", b" ") for line in lines]
)


def parse(lines: list[bytes], first_line: int, fill: bool):
    block = Block(b"".join(line + b"\n" for line in lines), first_line, len(lines), 0)
    return parse_block(block, CRITEO, labelled=True, fill_short_rows=fill)


@settings(max_examples=250, deadline=None)
@given(LINES, st.booleans())
def test_every_line_once_and_independent_of_its_neighbours(lines, fill):
    together = parse(lines, 1, fill)
    assert sorted([*together.lines, *together.bad["line"]]) == list(range(1, len(lines) + 1))
    assert together.bad["raw"].to_list() == [lines[number - 1] for number in together.bad["line"]]
    assert together.bad["reason"].null_count() == 0
    alone = [parse([line], number, fill) for number, line in enumerate(lines, 1)]
    assert together.rows.equals(pl.concat([one.rows for one in alone]))
    assert together.bad.equals(pl.concat([one.bad for one in alone]))
