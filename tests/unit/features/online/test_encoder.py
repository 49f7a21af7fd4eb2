"""The online encoder: what becomes of the rows of a request, and which requests are refused."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from common.files import DataError
from features.encode.feature_state import MISSING, NUM_RESERVED, UNSEEN, FeatureState
from features.ingest.readers.row_validation import typed_columns
from features.online.encoded_rows import BadRow, RequestError
from features.online.encoder import RequestEncoder
from features.schema.schema import Schema, load_schema
from tests.factories.list_logs import schema_of as schema_with_lists
from tests.factories.online import fit_state
from tests.factories.raw_logs import (
    CSV,
    CSV_WITH_HEADER,
    JSON,
    PARQUET,
    ROW,
    csv_line,
    parse_lines,
)

FORMATS = {"csv": CSV, "header": CSV_WITH_HEADER, "json": JSON, "parquet": PARQUET}
KEYS = ["at", "stamp", "price", "stock", "age", "site", "words", "code", "shop"]


def state_of(schema: Schema) -> FeatureState:
    """Return a state whose vocabularies are the values of ROW."""
    return fit_state(schema, parse_lines([json.dumps(ROW).encode()], JSON).rows)


def encoder_of(schema: Schema, short_rows: str = "quarantine") -> RequestEncoder:
    return RequestEncoder(state_of(schema), short_rows)


def record(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in ROW.items() if key != "clicked"} | changes


def unlabelled(**changes: str) -> str:
    """Return ROW as a line of CSV without the label."""
    fields = csv_line(**changes).split(",")
    return ",".join([fields[0], *fields[2:]])


def body_of(schema: Schema, *lines: str) -> bytes:
    header = [",".join(name for name in schema.names if name != "clicked")]
    return "\n".join([*(header if schema is CSV_WITH_HEADER else []), *lines, ""]).encode()


@pytest.mark.parametrize("schema", FORMATS.values(), ids=FORMATS)
def test_records_have_the_ids_of_their_values(schema: Schema) -> None:
    records = [record(), record(site="unseen", shop=None), record(words="new", clicked="ignored")]
    found = encoder_of(schema).encode_records(records)
    known = NUM_RESERVED
    assert found.ids_GF.tolist() == [
        [known, known, known, known],
        [UNSEEN, known, known, MISSING],
        [known, UNSEEN, known, known],
    ]
    expected = np.log(np.array([12.5, 0, 123456789012], np.float32) + np.float32(1))
    assert found.dense_GN.tolist() == [expected.tolist()] * 3
    assert (found.dense_GN.dtype, found.ids_GF.dtype) == (np.float32, np.int32)
    assert found.row_numbers_G.tolist() == [0, 1, 2]
    assert (found.num_rows, found.bad_rows) == (3, [])


@pytest.mark.parametrize("schema", [CSV, CSV_WITH_HEADER], ids=["csv", "header"])
def test_lines_have_the_inputs_of_their_records(schema: Schema) -> None:
    encoder = encoder_of(schema)
    lines = [unlabelled(), unlabelled(stock="", site="unseen"), unlabelled(code="NULL")]
    texts = record(words="red, big shoes")
    records = [texts, texts | {"stock": None, "site": "unseen"}, texts | {"code": "NULL"}]
    of_lines = encoder.encode_lines(body_of(schema, *lines))
    of_records = encoder.encode_records(records)
    assert np.array_equal(of_lines.ids_GF, of_records.ids_GF)
    assert np.array_equal(of_lines.dense_GN, of_records.dense_GN)
    assert of_lines.ids_GF[:, 2].tolist() == [NUM_RESERVED, NUM_RESERVED, MISSING]


@pytest.mark.parametrize("schema", [JSON, PARQUET], ids=["json", "parquet"])
def test_lines_of_json_have_the_inputs_of_their_records(schema: Schema) -> None:
    encoder = encoder_of(schema)
    records = [record(), record(site=None, price=3)]
    body = "\r\n".join(map(json.dumps, records)).encode()
    of_lines, of_records = encoder.encode_lines(body), encoder.encode_records(records)
    assert np.array_equal(of_lines.ids_GF, of_records.ids_GF)
    assert np.array_equal(of_lines.dense_GN, of_records.dense_GN)
    assert of_lines.num_rows == len(records)


def test_a_header_gives_the_order_of_the_fields_and_may_name_the_label() -> None:
    names = ["clicked", *reversed(KEYS)]
    values = [str(record(words="x").get(name, "?")) for name in names]
    found = encoder_of(CSV_WITH_HEADER).encode_lines(
        f"{','.join(names)}\n{','.join(values)}".encode()
    )
    expected = encoder_of(CSV_WITH_HEADER).encode_records([record(words="x")])
    assert found.ids_GF.tolist() == expected.ids_GF.tolist()
    assert found.dense_GN.tolist() == expected.dense_GN.tolist()


@pytest.mark.parametrize("schema", FORMATS.values(), ids=FORMATS)
def test_a_malformed_record_leaves_its_neighbours_alone(schema: Schema) -> None:
    records: list[Any] = [record(), record(stock="x", code=7), [1], record(at="noon")]
    found = encoder_of(schema).encode_records([*records, record()])
    assert found.bad_rows == [
        BadRow(1, "code: number found, string expected"),
        BadRow(2, "no JSON object"),
        BadRow(3, "at: 'noon' is not a time like %Y-%m-%d %H"),
    ]
    assert found.row_numbers_G.tolist() == [0, 4]
    assert found.dense_GN.shape == (2, 3)
    assert found.ids_GF.shape == (2, 4)
    assert found.num_rows == 5


@pytest.mark.parametrize("schema", [CSV, CSV_WITH_HEADER], ids=["csv", "header"])
def test_a_malformed_line_leaves_its_neighbours_alone(schema: Schema) -> None:
    lines = [unlabelled(stock="x"), unlabelled(), "a,b", unlabelled(), csv_line()]
    found = encoder_of(schema).encode_lines(body_of(schema, *lines))
    assert found.bad_rows == [
        BadRow(0, "stock: 'x' is not an integer of 64 bits"),
        BadRow(2, "2 columns, 10 expected"),
        BadRow(4, "11 columns, 10 expected"),
    ]
    assert found.row_numbers_G.tolist() == [1, 3]


def test_a_request_of_malformed_rows_only_has_no_inputs() -> None:
    found = encoder_of(CSV).encode_lines(b"\n\n")
    assert (found.dense_GN.shape, found.ids_GF.shape) == ((0, 3), (0, 4))
    assert [row for row, _ in found.bad_rows] == [0, 1]


def test_short_lines_are_filled_if_the_model_was_trained_so() -> None:
    line = unlabelled().rpartition(",")[0]
    assert encoder_of(CSV, "fill").encode_lines(line.encode()).ids_GF[0, 3] == MISSING
    assert encoder_of(CSV).encode_lines(line.encode()).bad_rows[0].row == 0


@pytest.mark.parametrize("schema", FORMATS.values(), ids=FORMATS)
def test_a_missing_key_is_an_error_that_names_the_key_meant(schema: Schema) -> None:
    misspelled = record()
    misspelled["stok"] = misspelled.pop("stock")
    message = r"row 1: missing: 'stock' \(is 'stok' a misspelling of 'stock'\?\)\. Each row needs"
    with pytest.raises(RequestError, match=message):
        encoder_of(schema).encode_records([record(), misspelled])
    with pytest.raises(RequestError, match="row 0: missing: 'at', 'stamp'"):
        encoder_of(schema).encode_records([{}])


def test_a_missing_key_in_lines_of_json_is_an_error() -> None:
    lines = [record(), {"site": "a.example"}]
    with pytest.raises(RequestError, match="row 1: missing: 'at', 'stamp'"):
        encoder_of(JSON).encode_lines("\n".join(map(json.dumps, lines)).encode())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("stok", r"missing: 'stock' \(is 'stok' a misspelling of 'stock'\?\); unknown: 'stok'"),
        ("site", "missing: 'stock'; twice: 'site'"),
    ],
)
def test_a_wrong_header_is_an_error(header: str, message: str) -> None:
    names = ",".join(name if name != "stock" else header for name in KEYS)
    with pytest.raises(RequestError, match=f"line 1: a header .*; {message}"):
        encoder_of(CSV_WITH_HEADER).encode_lines(f"{names}\n{unlabelled()}\n".encode())


@pytest.mark.parametrize("body", [b"", b"\xef\xbb\xbf"])
def test_lines_without_rows_are_an_error(body: bytes) -> None:
    with pytest.raises(RequestError, match="has no rows"):
        encoder_of(CSV).encode_lines(body)


def test_a_header_without_rows_is_an_error() -> None:
    with pytest.raises(RequestError, match="has no rows; send one at least, after the header"):
        encoder_of(CSV_WITH_HEADER).encode_lines(body_of(CSV_WITH_HEADER))


def test_no_records_are_an_error() -> None:
    with pytest.raises(RequestError, match="has no rows"):
        encoder_of(JSON).encode_records([])


def test_a_value_that_json_does_not_have_is_an_error() -> None:
    with pytest.raises(RequestError, match=r"row 0: it cannot be written as JSON: .*complex"):
        encoder_of(JSON).encode_records([record(price=1j)])


def test_text_of_another_encoding_is_an_error() -> None:
    with pytest.raises(RequestError, match="UTF-16"):
        encoder_of(CSV).encode_lines(unlabelled().encode("utf-16"))


def test_a_schema_with_lists_is_refused() -> None:
    schema = schema_with_lists("json_lines")
    empty = dict.fromkeys(schema.tables, pl.Series(dtype=pl.String))
    with pytest.raises(DataError, match=r"'viewed', 'tags', 'codes'.* lists .* clickmill predict"):
        RequestEncoder(FeatureState(schema, "frequency", empty, {}), "fill")


def test_the_keys_are_the_columns_that_are_read() -> None:
    assert encoder_of(CSV).columns == KEYS
    avazu = load_schema("avazu")
    dtypes = typed_columns(avazu)
    state = fit_state(avazu, pl.DataFrame(schema=dtypes))
    encoder = RequestEncoder(state, "quarantine")
    assert encoder.columns == [name for name in avazu.names if name not in ("id", "click")]
    found = encoder.encode_records([dict.fromkeys(encoder.columns) | {"hour": 14102100}])
    assert found.dense_GN.shape == (1, 0)
    assert found.ids_GF.tolist() == [[MISSING] * 21 + [UNSEEN, UNSEEN]]
