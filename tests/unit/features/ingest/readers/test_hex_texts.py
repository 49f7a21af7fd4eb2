"""Hex digits in texts of Arrow: the numbers that Polars reads too, or none."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.ingest.readers import compiled
from features.ingest.readers.hex_texts import are_other_texts, hex32_of
from features.ingest.readers.read_log import read_log
from features.schema.schema import Schema

TEXTS = ["0", None, "ff", "FF", "00c0ffee", "ffffffff", None, "1e3", "A"]
NUMBERS = [0, None, 255, 255, 0xC0FFEE, 2**32 - 1, None, 0x1E3, 10]
KINDS = {
    "texts": lambda: pa.array(TEXTS),
    "large texts": lambda: pa.array(TEXTS, pa.large_string()),
    "dictionary": lambda: pa.array(TEXTS).dictionary_encode(),
    "dictionary with null": lambda: pa.DictionaryArray.from_arrays(
        pa.array(range(len(TEXTS))), pa.array(TEXTS)
    ),
    "large dictionary": lambda: pa.DictionaryArray.from_arrays(
        pa.array(range(len(TEXTS))), pa.array([*TEXTS, "not hex"] * 2, pa.large_string())
    ),
}


@pytest.fixture(params=["compiled", "NumPy"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "NumPy":
        monkeypatch.setattr(compiled, "library", lambda: None)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_and_nulls_of_all_and_of_some_rows(kind: str) -> None:
    texts = KINDS[kind]()
    assert hex32_of(texts) == pa.array(NUMBERS, pa.uint32())
    assert hex32_of(texts[3:7]) == pa.array(NUMBERS[3:7], pa.uint32())


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("bad", ["", "g", "+1", "-1", "123456789", " 1", "0x1", "é"])
@pytest.mark.parametrize("before", [["1", None], ["1", "2"]])
def test_other_texts_are_left_to_polars(bad: str, before: list[str | None]) -> None:
    texts = pa.array([*before, bad, "2"])
    assert hex32_of(texts) is None
    assert hex32_of(texts.dictionary_encode()) is None


def test_other_types_and_no_rows_are_left_to_polars() -> None:
    for column in (pa.array([1, 2]), pa.array([b"1"]), pa.array(["1"], pa.string_view())):
        assert hex32_of(column) is None
        assert hex32_of(column[:0]) is None
    assert hex32_of(pa.array([], pa.string())) is None


@pytest.mark.parametrize("token", ["0", "dead", "5.0", "NaN", "-1"])
def test_a_null_token_may_be_like_a_number(token: str) -> None:
    assert not are_other_texts(["", token])
    assert are_other_texts(["", "\\N", "null"])


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_bad_row_is_kept_as_it_is_in_the_log(tmp_path: Path, *, dictionary: bool) -> None:
    columns = [
        {"kind": "label", "names": ["clicked"]},
        {"kind": "categorical", "names": ["c"], "parse": "hex32", "policy": "vocabulary"},
    ]
    schema = Schema.model_validate(
        {"format": {"kind": "parquet", "null_tokens": []}, "columns": columns}
    )
    table = pa.table({"clicked": [0, 2, 1], "c": ["0a", "0b", None]})
    pq.write_table(table, tmp_path / "log", use_dictionary=dictionary)
    (piece,) = read_log(tmp_path / "log", schema, labelled=True, short_rows="fill")
    assert piece.rows.rows() == [(0, 10), (1, None)]
    assert piece.rows.schema["c"] == pl.UInt32
    assert piece.bad_rows.row(0) == (2, "clicked: '2' is not 0 or 1", b'{"clicked": 2, "c": "0b"}')
