"""The fast path of the online encoder gives what the batch path gives, bit for bit, or declines."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encode.feature_state import MISSING, NUM_RESERVED, UNSEEN, FeatureState, Layout
from features.ingest.readers.column_types import columns_to_read
from features.online import fast_path, feature_makers, id_lookup
from features.online.batch_path import BatchPath
from features.online.encoded_rows import EncodedRows
from features.online.fast_path import DECLINED, FastPath
from features.schema.schema import Schema, check_schema, load_schema
from tests.factories.online import fit_state
from tests.factories.raw_logs import CSV, JSON, PARQUET, parse_lines
from tests.factories.support import real_log

HASH = {"name": "hash", "buckets": 5}
MIXED = {"name": "vocabulary_and_hash", "buckets": 3}
COLUMNS: list[dict[str, Any]] = [
    {"kind": "label", "names": ["clicked"]},
    {"kind": "time", "names": ["at"], "parse": "%y%m%d%H"},
    {"kind": "time", "names": ["seen"], "parse": "iso8601"},
    {"kind": "time", "names": ["born"], "parse": "unix_ms"},
    {"kind": "dense", "names": ["age", "stock"], "parse": "integer", "transform": "log1p"},
    {
        "kind": "dense",
        "names": ["price"],
        "parse": "float",
        "transform": {"name": "clip", "low": 0, "high": 7.1},
    },
    {"kind": "dense", "names": ["gain"], "parse": "float", "transform": "log1p"},
    {
        "kind": "dense",
        "names": ["rank", "clicks"],
        "parse": "integer",
        "transform": {"name": "quantile", "buckets": 4},
        "policy": MIXED,
    },
    {
        "kind": "dense",
        "names": ["size"],
        "parse": "float",
        "transform": "floor_ln2",
        "policy": "vocabulary",
    },
    {"kind": "categorical", "names": ["code"], "parse": "hex32", "policy": "vocabulary"},
    {"kind": "categorical", "names": ["word", "site"], "parse": "string", "policy": "vocabulary"},
    {"kind": "categorical", "names": ["shop"], "parse": "integer", "policy": "vocabulary"},
    {"kind": "categorical", "names": ["hashed_code"], "parse": "hex32", "policy": HASH},
    {"kind": "categorical", "names": ["hashed_word"], "parse": "string", "policy": HASH},
    {"kind": "categorical", "names": ["mixed_word"], "parse": "string", "policy": MIXED},
    {"kind": "categorical", "names": ["mixed_shop"], "parse": "integer", "policy": MIXED},
]
DERIVED: list[dict[str, Any]] = [
    {"name": "hour", "transform": "hour", "of": ["at"], "policy": "vocabulary"},
    {"name": "weekday", "transform": "weekday", "of": ["seen"], "policy": MIXED},
    {"name": "birth_hour", "transform": "hour", "of": ["born"], "policy": "vocabulary"},
    {"name": "pair", "transform": "cross", "of": ["word", "shop"], "policy": "vocabulary"},
    {"name": "other_pair", "transform": "cross", "of": ["code", "site"], "policy": MIXED},
    {"name": "words", "transform": {"name": "count", "min_count": 2}, "of": ["word"]},
    {"name": "codes", "transform": {"name": "count", "min_count": 1}, "of": ["code"]},
    {
        "name": "price_bucket",
        "transform": {"name": "quantile", "buckets": 3},
        "of": ["price"],
        "policy": "vocabulary",
    },
    {"name": "age_ln2", "transform": "floor_ln2", "of": ["age"], "policy": MIXED},
    {"name": "near", "transform": {"name": "clip", "low": -2.5, "high": 3}, "of": ["stock"]},
]


def schema_of(layout: str = "frequency", **log_format: Any) -> Schema:
    """Return a schema with every transform; only the layout `frequency` has hash buckets."""
    columns, derived = COLUMNS, DERIVED
    if layout != "frequency":
        text = json.dumps([columns, derived])
        for policy in (HASH, MIXED):
            text = text.replace(json.dumps(policy), '"vocabulary"')
        columns, derived = json.loads(text)
    values = {"format": log_format, "columns": columns, "derived": derived}
    return check_schema(Schema.model_validate(values), Path("test.yaml"))


TEXT = {"kind": "text", "separator": "|", "quote": None, "header": False, "null_tokens": ["", "NA"]}
LINES = {"kind": "json_lines", "null_tokens": [""]}
LAYOUTS: tuple[Layout, ...] = ("frequency", "appearance", "padded")
SCHEMAS: dict[str, tuple[Schema, Layout]] = {
    "criteo": (load_schema("criteo"), "frequency"),
    "avazu": (load_schema("avazu"), "frequency"),
    "csv": (CSV, "frequency"),
    "json": (JSON, "padded"),
    "parquet": (PARQUET, "frequency"),
    "numeric tokens": (schema_of(**TEXT | {"null_tokens": ["-1", "ab", "nan"]}), "frequency"),
    "no empty token": (schema_of(**TEXT | {"null_tokens": []}), "frequency"),
    **{f"text {layout}": (schema_of(layout, **TEXT), layout) for layout in LAYOUTS},
    **{f"json {layout}": (schema_of(layout, **LINES), layout) for layout in LAYOUTS},
    "header": (schema_of(**TEXT | {"header": True, "separator": "\t"}), "frequency"),
}
PLAIN = {
    "integer": ["0", "1", "-3", "17", "42", "-2147483649", "1234567890123"],
    "float": ["0", "1.5", "-2.25", "7.1", "1e5", "100", "3.4e38", "0.1"],
    "hex32": ["0", "a", "0000000a", "68fd1e64", "FFFFFFFF", "00c0ffee"],
    "string": ["a", "b", "a.example", "shoes and more shoes for all", "é", "Я", " ", "x'y"],
    "%y%m%d%H": ["14102100", "14102623", "69010100", "68123123"],
    "%Y-%m-%d %H": ["2024-02-29 23", "1969-12-31 01"],
    "iso8601": ["2026-03-01", "2026-03-01T10:15:00Z", "2026-03-02 23:59", "1969-12-31T23:59:59.5"],
    "unix": ["1700000000", "0", "-1"],
    "unix_ms": ["1700000000000", "-1", "86399999"],
}
ODD = [
    *[
        "",
        "NA",
        "NULL",
        "-0",
        "+5",
        "1_0",
        "0x1f",
        "0X1F",
        " 5",
        "5 ",
        "٣",
        "5.0",
        "1e3",
        "-",
        "--1",
    ],
    *["9223372036854775807", "9223372036854775808", "-9223372036854775808", "1" * 40, "0" * 30],
    *[
        "-1",
        "ab",
        "AB",
        "nan",
        "NaN",
        "inf",
        "-inf",
        "Infinity",
        "1e400",
        "3.5e38",
        "-0.0",
        ".5",
        "5.",
    ],
    *[
        "1e-400",
        "1.7976931348623157e308",
        "true",
        "False",
        "a\0b",
        "\r",
        '"',
        '"a"',
        "'",
        "\\N",
        "½",
    ],
    *[
        "000000001",
        "+1",
        "-1a",
        "1 2 3 4 ",
        "a\x1fb",
        "\ufeff",
        "\u2028",
        "²",
        "g",
        "0a\t",
        "x" * 40,
    ],
    *["14102124", "14023000", "1410210", "24-02-29", "2024-02-30 01", "2024-02-29 1", "0000-01-01"],
    *["2026-03-01T10:15:00+02:00", "2026-03-01T10", "2026-13-01", "9999-12-31T23:59:59", "1E5"],
    *[
        "253402300800",
        "253402300799999",
        "-62135596800001",
        "1.5e-7",
        "123456789.123456789123456789",
    ],
    *[
        "12345678901234567",
        "007",
        "-007",
        "0.30000000000000004",
        "2",
        "2.0000000000000004",
        "7.389056",
    ],
]


@cache
def state_of(name: str) -> FeatureState:
    """Return a state that is fitted to plain values, of which it lacks some."""
    schema, layout = SCHEMAS[name]
    kinds = {column.name: _kind(column) for column in columns_to_read(schema, labelled=False)}
    records = [
        {key: None if (k + n) % 9 == 8 else PLAIN[kind][(k * (1 + n % 3)) % (len(PLAIN[kind]) - 1)]
         for n, (key, kind) in enumerate(kinds.items())}
        for k in range(30)
    ]  # fmt: skip
    as_json = schema.model_copy(update={"format": JSON.format})
    lines = [json.dumps(record).encode() for record in records]
    parsed = parse_lines(lines, as_json, labelled=False)
    assert parsed.bad_rows.is_empty()
    return fit_state(schema, parsed.rows, layout)


def _kind(column: Any) -> str:
    return column.pattern if column.kind == "time" else column.kind


@cache
def paths(name: str) -> tuple[FastPath, BatchPath]:
    return FastPath(state_of(name)), BatchPath(state_of(name), "quarantine")


def values_of(name: str, others: st.SearchStrategy[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Draw rows of plain values, some of which are replaced by others."""
    names = paths(name)[1].columns
    changes = st.dictionaries(st.sampled_from(names), others, max_size=2)
    row = st.builds(
        lambda one, other: plain_row(name, one) | other, st.integers(0, 999).map(Random), changes
    )
    return st.lists(row, min_size=1, max_size=4)


def plain_row(name: str, random: Random) -> dict[str, Any]:
    columns = columns_to_read(SCHEMAS[name][0], labelled=False)
    return {column.name: random.choice(PLAIN[_kind(column)]) for column in columns}


def text_of(name: str, rows: Sequence[dict[str, str]]) -> bytes:
    """Return rows as the text of a schema; its ignored columns have a value, too."""
    schema, _ = SCHEMAS[name]
    names = schema.log_columns(labelled=False)
    lines = [schema.format.separator.join(row.get(key, "?") for key in names) for row in rows]
    if schema.format.header:
        lines.insert(0, schema.format.separator.join(names))
    return "\n".join([*lines, ""]).encode()


def compare(
    fast: Callable[[Any], EncodedRows], batch: Callable[[Any], EncodedRows], request: Any
) -> bool:
    """Return whether the fast path has encoded a request; fail unless both paths agree."""
    try:
        found = fast(request)
    except DECLINED:
        return False
    expected = batch(request)
    assert expected.bad_rows == []
    assert found.bad_rows == []
    for one, other in (
        (found.dense_GN, expected.dense_GN),
        (found.ids_GF, expected.ids_GF),
        (found.row_numbers_G, expected.row_numbers_G),
    ):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.flags.c_contiguous
        assert one.tobytes() == other.tobytes()
    assert found.num_rows == expected.num_rows
    return True


OTHER_TEXTS = st.sampled_from(ODD) | st.text(max_size=3)
OTHER_JSON = (
    OTHER_TEXTS
    | st.none()
    | st.booleans()
    | st.integers(-10, 100)
    | st.integers()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.floats(-10, 10)
    | st.just([1])
    | st.just({"a": 1})
)
TEXT_SCHEMAS = [name for name, (schema, _) in SCHEMAS.items() if schema.format.kind == "text"]


def check_lines(name: str, others: st.SearchStrategy[str], max_examples: int) -> None:
    @settings(max_examples=max_examples, deadline=None)
    @given(values_of(name, others), st.booleans())
    def check(rows: list[dict[str, str]], are_many: bool) -> None:
        fast, batch = paths(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fast_path, "MANY_LINES", 1 if are_many else 100)
            compare(fast.encode_lines, batch.encode_lines, text_of(name, rows))

    check()


def check_records(name: str, others: st.SearchStrategy[Any], max_examples: int) -> None:
    @settings(max_examples=max_examples, deadline=None)
    @given(values_of(name, others))
    def check(rows: list[dict[str, Any]]) -> None:
        fast, batch = paths(name)
        compare(fast.encode_records, batch.encode_records, rows)
        if SCHEMAS[name][0].format.kind != "text":
            lines = "\n".join(map(json.dumps, rows)).encode()
            compare(fast.encode_lines, batch.encode_lines, lines)

    check()


@pytest.mark.parametrize("num_rows", [1, 3, 40])
@pytest.mark.parametrize("name", SCHEMAS)
def test_plain_rows_take_the_fast_path(name: str, num_rows: int) -> None:
    """Without this test, a fast path that declines everything would pass the others."""
    fast, batch = paths(name)
    random = Random(num_rows)
    rows = [plain_row(name, random) for _ in range(num_rows)]
    rows[-1] |= dict.fromkeys(batch.columns)
    if SCHEMAS[name][0].format.kind == "text":
        empty = "ab" if name == "numeric tokens" else ""
        texts = [
            {key: empty if value is None else value for key, value in row.items()} for row in rows
        ]
        if "" not in SCHEMAS[name][0].format.null_tokens and name != "numeric tokens":
            texts = texts[:-1] or [plain_row(name, random)]
        assert compare(fast.encode_lines, batch.encode_lines, text_of(name, texts))
    else:
        assert compare(
            fast.encode_lines, batch.encode_lines, "\n".join(map(json.dumps, rows)).encode()
        )
    if name != "numeric tokens":
        assert compare(fast.encode_records, batch.encode_records, rows)


def test_numbers_of_json_take_the_fast_path() -> None:
    rows = [
        {key: int(value) if key.startswith("I") else value for key, value in row.items()}
        for row in [plain_row("criteo", Random(k)) for k in range(3)]
    ]
    fast, batch = paths("criteo")
    assert compare(fast.encode_records, batch.encode_records, rows)


@pytest.mark.parametrize("value", ["12 34 56", "1234567\n", "0x123456", "-1234567", "123456789"])
def test_other_texts_than_hex_digits_are_left_to_the_batch_path(value: str) -> None:
    fast, _ = paths("criteo")
    with pytest.raises(DECLINED):
        fast.encode_records([plain_row("criteo", Random(0)) | {"C3": value}])


@pytest.mark.parametrize("num_lines", [1, fast_path.MANY_LINES])
def test_an_empty_field_is_no_missing_value_unless_the_schema_says_so(num_lines: int) -> None:
    fast, _ = paths("no empty token")
    rows = [plain_row("no empty token", Random(0)) | {"code": ""}] * num_lines
    with pytest.raises(DECLINED):
        fast.encode_lines(text_of("no empty token", rows))


def test_half_of_a_surrogate_pair_is_left_to_the_batch_path() -> None:
    fast, _ = paths("json frequency")
    with pytest.raises(DECLINED):
        fast.encode_records([plain_row("json frequency", Random(0)) | {"word": "\ud800"}])


def test_a_key_twice_is_left_to_the_batch_path() -> None:
    fast, _ = paths("json frequency")
    line = json.dumps(plain_row("json frequency", Random(0)))
    with pytest.raises(DECLINED):
        fast.encode_lines(f'{{"word": "a", {line[1:]}'.encode())


def test_minus_zero_of_json_keeps_its_sign() -> None:
    row = json.dumps(plain_row("json frequency", Random(0)) | {"price": 0, "gain": 0})
    line = row.replace('"price": 0', '"price": -0').encode()
    fast, batch = paths("json frequency")
    assert np.signbit(batch.encode_lines(line).dense_GN).any()
    assert not compare(fast.encode_lines, batch.encode_lines, line)


def test_a_number_that_is_a_null_token_is_missing() -> None:
    fast, batch = paths("numeric tokens")
    record = plain_row("numeric tokens", Random(0)) | {"shop": -1}
    assert MISSING in batch.encode_records([record]).ids_GF
    assert not compare(fast.encode_records, batch.encode_records, [record])


def test_an_unseen_text_with_the_hash_of_a_known_one_is_unseen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (feature_makers, id_lookup):
        monkeypatch.setattr(module, "hash", len, raising=False)
    words = pl.Series(["a", "bb", "ccc"])
    schema = Schema.model_validate(
        {
            "format": LINES,
            "columns": [
                COLUMNS[0],
                {
                    "kind": "categorical",
                    "names": ["word"],
                    "parse": "string",
                    "policy": "vocabulary",
                },
            ],
        }
    )
    encoder = FastPath(FeatureState(schema, "frequency", {"word": words}, {}))
    found = encoder.encode_records([{"word": text} for text in ("bb", "xx", "a", "dddd", "ccc")])
    first = NUM_RESERVED
    assert found.ids_GF[:, 0].tolist() == [first + 1, UNSEEN, first, UNSEEN, first + 2]


@pytest.mark.parametrize("size", [1, 100, 4096])
def test_real_rows_take_the_fast_path(size: int) -> None:
    lines = real_log("criteo/kaggle_span_10k.tsv").read_bytes().splitlines()
    schema = load_schema("criteo")
    state = fit_state(schema, parse_lines(lines[:5000], schema).rows, min_count=2)
    fast, batch = FastPath(state), BatchPath(state, "fill")
    unlabelled = [line.split(b"\t", 1)[1] for line in lines]
    for start in range(0, min(len(lines), 2 * size), size):
        chosen = unlabelled[start : start + size]
        assert compare(fast.encode_lines, batch.encode_lines, b"\n".join(chosen))
        fields = [line.decode().split("\t") for line in chosen]
        names = schema.log_columns(labelled=False)
        records = [dict(zip(names, values, strict=True)) for values in fields]
        assert compare(fast.encode_records, batch.encode_records, records)


@pytest.mark.parametrize("name", TEXT_SCHEMAS)
def test_lines_of_odd_texts(name: str) -> None:
    check_lines(name, OTHER_TEXTS, 10)


@pytest.mark.parametrize("name", SCHEMAS)
def test_records_of_odd_values(name: str) -> None:
    check_records(name, OTHER_JSON, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_SCHEMAS)
def test_many_lines_of_odd_texts(name: str) -> None:
    check_lines(name, OTHER_TEXTS, 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_many_records_of_odd_values(name: str) -> None:
    check_records(name, OTHER_JSON, 300)
