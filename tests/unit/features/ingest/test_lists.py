"""Lists, their weights and sample weights in logs of every format: values and bad rows."""

from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.ingest.readers.read_log import has_label
from features.ingest.readers.row_validation import typed_columns
from tests.factories.list_logs import FORMATS, Row, read_rows, schema_of, typed_rows, write_log

GOOD: Row = {
    "clicked": 1,
    "price": 2.5,
    "viewed": [5, 7, 5],
    "viewed_weights": [1.0, 0.5, -2.25],
    "item": 5,
    "tags": ["red", "a tag of more than twelve bytes"],
    "codes": ["0000000a", "ff"],
    "weight": 0.25,
}
# Two nulls, because one null in a text log is a missing list.
NULLS: Row = {
    **GOOD,
    "viewed": [None, 3],
    "viewed_weights": [1.0, 2.0],
    "tags": [None, None],
    "codes": [None, "1"],
}
MISSING: Row = {**GOOD, "viewed": None, "viewed_weights": None, "tags": None, "codes": None}
LONG: Row = {
    **GOOD,
    "viewed": list(range(100)),
    "viewed_weights": [0.5] * 100,
    "tags": ["x"] * 100,
}
ROWS = [GOOD, NULLS, MISSING, LONG]


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_the_same_in_every_format(kind: str, tmp_path: Path) -> None:
    parsed = read_rows(write_log(tmp_path / "log", ROWS, kind), schema_of(kind))
    assert parsed.bad_rows.is_empty()
    assert parsed.rows.schema == pl.Schema(typed_columns(schema_of(kind)))
    assert parsed.rows.dtypes[2:4] == [pl.List(pl.Int64), pl.List(pl.Float32)]
    assert parsed.rows.dtypes[5:] == [pl.List(pl.String), pl.List(pl.UInt32), pl.Float32]
    assert parsed.rows.to_dicts() == typed_rows(ROWS)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"viewed_weights": [1.0]}, "viewed_weights: length 1, but viewed has length 3"),
        ({"viewed_weights": None}, "viewed_weights: length 0, but viewed has length 3"),
        ({"viewed": None}, "viewed_weights: length 3, but viewed has length 0"),
        (
            {"viewed_weights": [1.0, None, 2.0]},
            "viewed_weights: value 2 of the list, null, is not a finite number",
        ),
        (
            {"codes": ["1", "g", "h"]},
            "codes: value 2 of the list, 'g', is not up to 8 hex digits",
        ),
        ({"weight": None}, "weight: '' is not 0 or a number from 1e-30 to 1e+30"),
        ({"weight": -0.5}, "weight: '-0.5' is not 0 or a number from 1e-30 to 1e+30"),
    ],
)
def test_bad_rows_are_named(
    kind: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log", [GOOD, GOOD | changes, NULLS], kind)
    parsed = read_rows(log, schema_of(kind))
    assert parsed.bad_rows.select("line", "reason").rows() == [(2, reason)]
    assert parsed.rows.to_dicts() == typed_rows([GOOD, NULLS])


@pytest.mark.parametrize("kind", ["text", "json_lines"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"viewed": [1, "x", "y"]},
            "viewed: value 2 of the list, 'x', is not an integer of 64 bits",
        ),
        (
            {"viewed_weights": [1, 2, "inf"]},
            "viewed_weights: value 3 of the list, 'inf', is not a finite number",
        ),
        (
            {"viewed_weights": [1, 2, 1e39]},
            "viewed_weights: value 3 of the list, '1e39', is not a finite number",
        ),
        ({"weight": "nan"}, "weight: 'nan' is not 0 or a number from 1e-30 to 1e+30"),
        ({"weight": "inf"}, "weight: 'inf' is not 0 or a number from 1e-30 to 1e+30"),
        ({"weight": "1e31"}, "weight: '1e31' is not 0 or a number from 1e-30 to 1e+30"),
        ({"weight": "1e-31"}, "weight: '1e-31' is not 0 or a number from 1e-30 to 1e+30"),
    ],
)
def test_bad_values_are_named(
    kind: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log", [GOOD, GOOD | changes, NULLS], kind)
    (found,) = read_rows(log, schema_of(kind)).bad_rows["reason"]
    assert found.replace("1e+39", "1e39") == reason


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("weight", [0.0, 1e-30, 1e30])
def test_the_smallest_and_the_largest_sample_weight(
    kind: str, weight: float, tmp_path: Path
) -> None:
    row = GOOD | {"weight": weight}
    parsed = read_rows(write_log(tmp_path / "log", [row], kind), schema_of(kind))
    assert parsed.rows["weight"].to_list() == pytest.approx([weight])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"viewed": 5}, "viewed: number found, list expected"),
        ({"viewed": {"a": 1}}, "viewed: object found, list expected"),
        ({"tags": ["a", 5.5]}, "tags: number with a fraction found, text or integer expected"),
        ({"tags": [["a"]]}, "tags: list found, string or number or boolean expected"),
        ({"item": [5]}, "item: list found, number or string or boolean expected"),
    ],
)
def test_json_types(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", [GOOD, GOOD | changes], "json_lines")
    assert read_rows(log, schema_of("json_lines")).bad_rows["reason"].to_list() == [reason]


def test_an_empty_list_and_a_missing_one_can_be_told_apart_until_they_are_encoded(
    tmp_path: Path,
) -> None:
    row = {**GOOD, "viewed": [], "viewed_weights": [], "tags": [], "codes": []}
    for kind in ("json_lines", "parquet"):
        parsed = read_rows(write_log(tmp_path / "log", [row], kind), schema_of(kind))
        assert parsed.rows.to_dicts() == [row]


def test_parquet_types_of_lists(tmp_path: Path) -> None:
    """Lists of one length, of categories, of other integers and of nothing are read as well."""
    table = pa.table(
        {
            "clicked": pa.array([1, 0], pa.int8()),
            "price": pa.array([1.0, 2.0], pa.float32()),
            "viewed": pa.array([[1, 2], [3, 4]], pa.list_(pa.uint8(), 2)),
            "viewed_weights": pa.array([[1, 2], [3, 4]], pa.large_list(pa.int16())),
            "item": pa.array([1, 2], pa.int32()),
            "tags": pa.ListArray.from_arrays(
                [0, 1, 3], pa.array(["a", "b", "a"]).dictionary_encode()
            ),
            "codes": pa.array([[], None], pa.list_(pa.null())),
            "weight": pa.array([1, 2], pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "log")
    parsed = read_rows(tmp_path / "log", schema_of("parquet"))
    assert parsed.bad_rows.is_empty()
    assert parsed.rows["viewed"].to_list() == [[1, 2], [3, 4]]
    assert parsed.rows["viewed_weights"].to_list() == [[1.0, 2.0], [3.0, 4.0]]
    assert parsed.rows["tags"].to_list() == [["a"], ["b", "a"]]
    assert parsed.rows["codes"].to_list() == [[], None]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (
            pa.array([[b"red", None], None, [b"a", b"\xff"], []], pa.large_list(pa.large_binary())),
            [["red", None], None, []],
        ),
        (
            pa.ListArray.from_arrays(
                [0, 1, 2, 2, 2], pa.array([UUID(int=7).bytes, UUID(int=8).bytes], pa.uuid())
            ),
            [[str(UUID(int=7))], [str(UUID(int=8))], [], []],
        ),
    ],
    ids=["binary", "UUIDs"],
)
def test_lists_of_binary_texts_and_of_uuids(
    tmp_path: Path, values: pa.Array, texts: list[list[str] | None]
) -> None:
    rows = [GOOD | {"tags": None}] * 4
    table = pq.read_table(write_log(tmp_path / "log", rows, "parquet"))
    position = table.column_names.index("tags")
    pq.write_table(table.set_column(position, "tags", values), tmp_path / "log")
    parsed = read_rows(tmp_path / "log", schema_of("parquet"))
    assert parsed.rows["tags"].to_list() == texts
    reasons = parsed.bad_rows["reason"].to_list()
    assert reasons == ["tags: binary that is not UTF-8, text expected"] * (4 - len(texts))


@pytest.mark.parametrize("kind", FORMATS)
def test_an_unlabelled_log_has_no_sample_weights(kind: str, tmp_path: Path) -> None:
    schema = schema_of(kind)
    rows = [
        {name: value for name, value in row.items() if name not in ("clicked", "weight")}
        for row in ROWS
    ]
    if kind == "parquet":
        write_log(tmp_path / "all", ROWS, kind)
        pq.write_table(
            pq.read_table(tmp_path / "all").drop_columns(["clicked", "weight"]), tmp_path / "log"
        )
    else:
        write_log(tmp_path / "log", rows, kind)
    assert not has_label(tmp_path / "log", schema)
    parsed = read_rows(tmp_path / "log", schema, labelled=False)
    assert parsed.rows.to_dicts() == typed_rows(rows)
