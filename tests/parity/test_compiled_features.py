"""The compiled loops of ingest and features give what NumPy and pandas give without a compiler."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.layout import FEATURES, PARQUET
from features import hash_tables
from features.hash_tables import (
    CompiledIdTable,
    IdTable,
    PandasIdTable,
    SortedIdTable,
    count_integers,
)
from features.ingest.readers import compiled, digits
from features.ingest.readers.digits import Numbers
from features.ingest.readers.fields import Fields, find_fields
from tests.factories.support import make_features, make_params

ODD = st.sampled_from(["", "-", "+1", "é", "1\x7f", "g", "G", "@", "`", "/", ":", "123456789abc"])
# The parsers, each with fields that it reads, nearly always.
FIELDS = {
    digits.parse_labels: st.sampled_from(["0", "1"]) | st.sampled_from(["", "2", "/", "11"]),
    digits.parse_integers: st.integers(-(10**16) + 1, 10**16 - 1).map(str)
    | st.text("0123456789", max_size=17)
    | ODD,
    digits.parse_hex32: st.text("0123456789abcdefABCDEF", max_size=9) | ODD,
}
DTYPES = (np.uint8, np.int32, np.uint32, np.int64, np.uint64)


@pytest.fixture(scope="module", autouse=True)
def _with_compiler() -> None:
    if compiled.library() is None:
        pytest.skip("no C++ compiler")


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 5))
@pytest.mark.parametrize("parse", FIELDS)
def test_numbers_are_those_of_numpy(
    parse: Callable[[Fields, slice], Numbers | None],
    data: st.DataObject,
    num_columns: int,
    num_lines: int,
) -> None:
    line = st.lists(FIELDS[parse], min_size=num_columns, max_size=num_columns).map("\t".join)
    lines = data.draw(st.lists(line, min_size=num_lines, max_size=num_lines))
    text = "".join(f"{line}\tlast\n" for line in lines).encode()
    columns = slice(data.draw(st.integers(0, num_columns - 1)), num_columns)
    fields = find_fields(text, num_lines, num_columns + 1, "\t", None)
    assert fields is not None
    numbers = parse(fields, columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "library", lambda: None)
        expected_fields = find_fields(text, num_lines, num_columns + 1, "\t", None)
        expected = parse(fields, columns)
    assert expected_fields is not None
    assert np.array_equal(fields.before, expected_fields.before)
    assert np.array_equal(fields.ends, expected_fields.ends)
    assert (numbers is None) == (expected is None)
    if numbers is not None and expected is not None:
        assert numbers.values.dtype == expected.values.dtype
        assert np.array_equal(numbers.values, expected.values)
        assert np.array_equal(numbers.is_present, expected.is_present)


@pytest.mark.parametrize("num_fields", [0, 1, 15, 16, 17, 33, 1000])
@pytest.mark.parametrize("difference", [-1, 0, 1])
def test_delimiters_are_found_only_if_their_number_is_right(
    num_fields: int, difference: int
) -> None:
    text = b"".join(b"%d\t" % k for k in range(num_fields)) + b"end\n"
    data = np.frombuffer(text, np.uint8)
    places = np.full(max(0, num_fields + 1 + difference), -1)
    assert compiled.find_delimiters(data, 0, ord("\t"), places) == (difference == 0)
    if difference == 0:
        assert places.tolist() == [k for k, byte in enumerate(text) if byte in b"\t\n"]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(DTYPES))
def test_tables_of_ids_are_alike(data: st.DataObject, dtype: type[np.integer]) -> None:
    limits = np.iinfo(dtype)
    value = st.integers(int(limits.min), int(limits.max))
    known = np.array(data.draw(st.lists(value, min_size=1, max_size=40, unique=True)), dtype)
    drawn = st.lists(value | st.sampled_from(known.tolist()), max_size=40)
    values = np.array(data.draw(drawn), dtype)
    tables: list[IdTable] = [
        make(known) for make in (CompiledIdTable, PandasIdTable, SortedIdTable)
    ]
    num_known = data.draw(st.integers(0, len(known)))
    ids, *others = (table.ids_of(values, num_known, 7, 0) for table in tables)
    for expected in others:
        assert ids.dtype == expected.dtype == np.int32
        assert np.array_equal(ids, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_distinct", [0, 1, 100, 20_000])
def test_counts_are_those_of_numpy(dtype: type[np.integer], num_distinct: int) -> None:
    random = np.random.default_rng(num_distinct)
    limits = np.iinfo(dtype)
    pool = random.integers(limits.min, limits.max, num_distinct, dtype, endpoint=True)
    values = random.choice(pool, 3 * num_distinct) if num_distinct else pool
    counted = count_integers(values)
    assert counted is not None
    expected = np.unique(values, return_counts=True)
    assert counted[0].dtype == dtype
    assert np.array_equal(counted[0], expected[0])
    assert np.array_equal(counted[1], expected[1])


def test_too_many_distinct_values_are_left_to_sorting() -> None:
    most = hash_tables.MAX_COUNTED
    assert count_integers(np.arange(most)) is not None
    assert count_integers(np.arange(most + 1)) is None


def test_a_run_without_a_compiler_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(sample__num_rows=3000)
    make_features(tmp_path / "with", params)
    monkeypatch.setattr(compiled, "library", lambda: None)
    monkeypatch.setattr(hash_tables, "library", lambda: None)
    make_features(tmp_path / "without", params)
    for directory in (PARQUET, FEATURES):
        names = sorted(
            path.relative_to(tmp_path / "with" / directory)
            for path in (tmp_path / "with" / directory).rglob("*")
            if path.suffix == ".parquet"
        )
        assert names
        for name in names:
            with_compiler = (tmp_path / "with" / directory / name).read_bytes()
            assert with_compiler == (tmp_path / "without" / directory / name).read_bytes(), name
    assert pl.read_parquet(next((tmp_path / "with" / FEATURES / "train").iterdir())).height
