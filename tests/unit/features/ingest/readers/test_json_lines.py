"""JSON lines: the same row as in CSV gives the same values, and bad rows have their reasons."""

from typing import Any

import pytest

from features.ingest.readers import json_lines
from features.ingest.readers.row_validation import MAX_RAW_BYTES
from tests.factories.raw_logs import JSON, NULLS, READ, TYPES, json_line, parse_lines


def test_values_of_every_accepted_type() -> None:
    strings = json_line(
        words="red, big shoes", stock="-3", price="12.5", clicked="1", stamp="1700000000", shop="17"
    )
    lines = [
        json_line(words="red, big shoes"),
        strings,
        json_line(words="red, big shoes", clicked=True, extra=[1, {"a": None}]),
    ]
    parsed = parse_lines(
        [*(line.encode() for line in lines), b'{"clicked": false, "stock": "NULL", "price": null}'],
        JSON,
    )
    assert parsed.bad_rows.is_empty()
    assert parsed.rows.dtypes == TYPES
    assert parsed.rows.rows() == [READ, READ, READ, (0, *[None] * len(NULLS))]


@pytest.mark.parametrize(
    "changes",
    [{}, {"clicked": True}, {"clicked": "1", "stock": "-3", "shop": "17", "stamp": "1700000000"}],
)
def test_lines_of_one_type_are_parsed_by_arrow_alone(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "parse_line_by_line", None)
    assert (
        parse_lines([json_line(words=READ[7], **changes).encode()] * 3, JSON).rows.rows()
        == [READ] * 3
    )


BAD_JSON = [
    ("", "no JSON: Expecting value at character 1"),
    ("[1]", "no JSON object"),
    ('{"clicked": 1', "no JSON: Expecting ',' delimiter at character 14"),
    (json_line() + json_line(), "no JSON: Extra data"),
    ("{}", "clicked: '' is not 0 or 1"),
    (json_line(clicked=2), "clicked: '2' is not 0 or 1"),
    (json_line(price=True), "price: boolean found, number or string expected"),
    (json_line(stock=1.5), "stock: '1.5' is not an integer of 64 bits"),
    (json_line(stock=10**30), f"stock: '{10**30}' is not an integer of 64 bits"),
    (json_line(price=float("nan")), "price: 'NaN' is not a finite number up to 3.4e+38"),
    (json_line(price="cheap"), "price: 'cheap' is not a finite number up to 3.4e+38"),
    (json_line(code=17), "code: number found, string expected"),
    (json_line(words=1.5), "words: number with a fraction found, text or integer expected"),
    (json_line(stock="nan"), "stock: 'nan' is not an integer of 64 bits"),
    (json_line(price=1e39), "price: '1e+39' is not a finite number up to 3.4e+38"),
    (json_line(price=float("-inf")), "price: '-Infinity' is not a finite number"),
    (json_line(words=["a"]), "words: list found, string or number or boolean expected"),
    (json_line(words={"a": 1}), "words: object found, string or number or boolean expected"),
    (json_line(words="\ud800"), r"words: half of a surrogate pair in '\ud800'"),
    (
        '{"clicked": 1, "shop": 1, "shop": 2}',
        "shop: the key twice found, number or string or boolean expected",
    ),
    ('{"clicked": 1, "id": Inf}', "no JSON: Expecting value at character 22"),
    (json_line(words="x" * (1 << 20)), "longer than 1 MiB"),
    (f'{{"clicked": 1, "id": [{"0," * (1 << 19)}0]}}', "longer than 1 MiB"),
    ("[" * 100_000, "no JSON that can be read: too deeply nested"),
    ('{"clicked": 1, "id": ' + "[" * 100_000, "no JSON that can be read: too deeply nested"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_JSON, ids=range(len(BAD_JSON)))
@pytest.mark.parametrize("others", [3, 1000])
def test_bad_lines(bad: str, reason: str, others: int) -> None:
    good = [json_line().encode()] * others
    parsed = parse_lines([*good, bad.encode(), *good], JSON)
    assert parsed.bad_rows["line"].to_list() == [others + 1]
    assert parsed.bad_rows["reason"].item().startswith(reason)
    assert parsed.bad_rows["raw"].item() == bad.encode()[:MAX_RAW_BYTES]
    assert parsed.rows.height == 2 * others


def test_lines_that_only_arrow_would_accept() -> None:
    """Two objects on one line and none on the next are as many objects as lines, but bad rows."""
    lines = [
        json_line(),
        json_line() + " " + json_line(),
        "",
        '{"clicked": 0,',
        '"shop": 1}',
        '{"clicked": 1}',
    ]
    parsed = parse_lines([line.encode() for line in lines], JSON)
    assert parsed.line_numbers.to_list() == [1, 6]
    parsed = parse_lines([b'{"clicked": 1}', b'{"id": {}', b', "clicked": 1} {"clicked": 1}'], JSON)
    assert parsed.line_numbers.to_list() == [1]


def test_negative_zero_is_the_same_for_arrow_and_python() -> None:
    assert parse_lines([b'{"clicked": -0}', b'{"clicked": 1}'], JSON).rows["clicked"].to_list() == [
        0,
        1,
    ]
    assert parse_lines([b'{"clicked": -0}', b'{"clicked": "1"}'], JSON).rows[
        "clicked"
    ].to_list() == [0, 1]


def test_a_value_cannot_end_the_line_of_its_reason() -> None:
    value = "q\nclickmill: error: all is well\nexited with 65\x1b[31m"
    bad = json_line(price=value).encode()
    parsed = parse_lines([json_line().encode(), bad], JSON)
    assert parsed.bad_rows.rows() == [
        (
            2,
            r"price: 'q\nclickmill: error: all is well\nexited with 65\x1b[31' is not a finite number up to 3.4e+38",
            bad,
        )
    ]
