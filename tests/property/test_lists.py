"""Rows with lists: the same in every format, and with the ids of an encoder in plain Python."""

import json
from collections import Counter
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encode.feature_state import FeatureState, Layout
from features.encode.vocabulary import frequent_values
from features.ingest.readers import json_lines
from features.ingest.readers.blocks import Block
from features.ingest.readers.row_validation import typed_columns
from features.list_values import lengths_of, lists_of, map_values, values_of
from features.value_counts import DAY, count_values, count_values_by_day
from tests.factories.list_logs import (
    FORMATS,
    MAX_LENGTHS,
    POLICY_OF_CODES,
    POLICY_OF_TAGS,
    Row,
    read_rows,
    schema_of,
    typed_rows,
    write_log,
)
from tests.factories.support import xxh64

MIN_COUNT = 2
ITEMS = st.one_of(st.none(), st.integers(-3, 9), st.integers(-(2**62), 2**62))
TAGS = st.one_of(st.none(), st.sampled_from(["a", "é", "of more than twelve bytes", "b c"]))
CODES = st.one_of(st.none(), st.sampled_from(["0", "a", "0000000a", "FF", "12345678"]))
WEIGHTS = st.floats(-1e6, 1e6, width=32)


def lists_of_some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any] | None]:
    """Draw lists that a text log can have: no list is empty, and none has one null alone."""
    some = st.lists(values, min_size=1, max_size=8).filter(lambda drawn: drawn != [None])
    return st.one_of(st.none(), some)


@st.composite
def drawn_rows(draw: st.DrawFn) -> list[Row]:
    """Draw rows, of which some are bad: they have too few weights."""
    rows = []
    for _ in range(draw(st.integers(1, 20))):
        viewed = draw(lists_of_some(ITEMS))
        num_weights = len(viewed or []) - (draw(st.integers(0, 9)) == 0 and len(viewed or []) > 1)
        weights = draw(st.lists(WEIGHTS, min_size=num_weights, max_size=num_weights))
        rows.append(
            {
                "clicked": draw(st.integers(0, 1)),
                "price": draw(st.integers(-3, 100)) / 4,
                "viewed": viewed,
                "viewed_weights": weights or None,
                "item": draw(ITEMS),
                "tags": draw(lists_of_some(TAGS)),
                "codes": draw(lists_of_some(CODES)),
                "weight": draw(st.integers(0, 8)) / 8,
            }
        )
    return rows


def is_good(row: Row) -> bool:
    return len(row["viewed"] or []) == len(row["viewed_weights"] or [])


@settings(max_examples=60, deadline=None)
@given(rows=drawn_rows())
def test_rows_are_the_same_in_every_format(
    rows: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A log without any good row is refused as a whole.
    rows = [{**rows[0], "viewed": None, "viewed_weights": None}, *rows]
    path = tmp_path_factory.mktemp("log") / "log"
    for kind in FORMATS:
        parsed = read_rows(write_log(path, rows, kind), schema_of(kind))
        assert parsed.rows.height + parsed.bad_rows.height == len(rows)
        assert parsed.rows.to_dicts() == typed_rows([row for row in rows if is_good(row)])
        assert parsed.bad_rows["line"].to_list() == [
            number for number, row in enumerate(rows, 1) if not is_good(row)
        ]


@settings(max_examples=60, deadline=None)
@given(rows=drawn_rows())
def test_json_at_once_is_the_same_as_line_by_line(rows: list[Row]) -> None:
    text = "".join(f"{line}\n" for line in map(json.dumps, rows)).encode()
    block = Block(text, 1, len(rows), 0)
    layout = json_lines.Layout.of_log(schema_of("json_lines"), block, labelled=True)
    at_once = json_lines.parse_with_arrow(text, len(rows), layout)
    line_by_line, reasons = json_lines.parse_line_by_line(block.lines(), layout)
    assert reasons.null_count() == len(rows)
    assert at_once is not None
    for column in layout.columns:
        as_typed = [
            frame.select(column.conversion_from(frame.schema[column.name])).to_series()
            for frame in (at_once, line_by_line)
        ]
        assert as_typed[0].equals(as_typed[1])


def fit(typed: pl.DataFrame, layout: Layout) -> FeatureState:
    """Fit the vocabularies of typed rows."""
    lazy = typed.lazy()
    kept = {name: pl.col(name).list.head(length) for name, length in MAX_LENGTHS.items()}
    counts = {
        "item": count_values(lazy, kept["viewed"], pl.col("item")),
        "tags": count_values(lazy, kept["tags"]),
        "codes": count_values(lazy, kept["codes"]),
    }
    values = {table: frequent_values(counted, MIN_COUNT) for table, counted in counts.items()}
    values["codes"] = values["codes"].clear()
    return FeatureState(schema_of("parquet"), layout, values, {})


def vocabulary_of(values: list[Any]) -> dict[Any, int]:
    """Return the rank of each frequent value, by (-count, value)."""
    counts = Counter(value for value in values if value is not None)
    frequent = [value for value, count in counts.items() if count >= MIN_COUNT]
    ordered = sorted(frequent, key=lambda value: (-counts[value], value))
    return {value: rank for rank, value in enumerate(ordered)}


def id_of(value: Any, ranks: dict[Any, int], buckets: int, layout: Layout) -> int:
    """Return the id of a value, as the table in features/encode/feature_state.py says."""
    if layout == "padded":
        return 1 + ranks.get(value, len(ranks))
    if value is None:
        return 1
    if value in ranks:
        return 2 + buckets + ranks[value]
    return 2 + xxh64(str(value).encode()) % buckets if buckets else 0


@pytest.mark.parametrize("layout", ["frequency", "padded"])
def test_ids_are_those_of_an_encoder_in_plain_python(layout: Layout) -> None:
    @settings(max_examples=100, deadline=None)
    @given(drawn_rows())
    def check(drawn: list[Row]) -> None:
        rows = typed_rows([row for row in drawn if is_good(row)])
        schema = schema_of("parquet")
        typed = pl.DataFrame(rows, schema=typed_columns(schema))
        encoded = fit(typed, layout).encode(typed)
        assert encoded.schema == fit(typed, layout).output_columns

        def kept(row: Row, name: str) -> list[Any]:
            return (row[name] or [])[: MAX_LENGTHS[name]]

        ranks = {
            "viewed": vocabulary_of(
                [value for row in rows for value in [*kept(row, "viewed"), row["item"]]]
            ),
            "tags": vocabulary_of([value for row in rows for value in kept(row, "tags")]),
            "codes": {},
        }
        buckets = {
            "viewed": 0,
            "tags": int(str(POLICY_OF_TAGS["buckets"])),
            "codes": int(str(POLICY_OF_CODES["buckets"])),
        }
        for name in MAX_LENGTHS:
            of_values = 0 if layout == "padded" else buckets[name]
            assert encoded[name].to_list() == [
                [id_of(value, ranks[name], of_values, layout) for value in kept(row, name)]
                for row in rows
            ]
        assert encoded["item"].to_list() == [
            id_of(row["item"], ranks["viewed"], 0, layout) for row in rows
        ]
        assert encoded["viewed_weights"].to_list() == [
            (row["viewed_weights"] or [])[: MAX_LENGTHS["viewed"]] for row in rows
        ]
        assert encoded["weight"].to_list() == [row["weight"] for row in rows]
        assert schema.tables == {"item": ["viewed", "item"], "tags": ["tags"], "codes": ["codes"]}

    check()


@settings(max_examples=100, deadline=None)
@given(
    lists=st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 5))))),
    dtype=st.sampled_from([pl.Int64(), pl.String(), pl.UInt32()]),
    start=st.integers(0, 3),
)
def test_values_are_put_back_where_they_were(
    lists: list[list[int | None] | None], dtype: pl.DataType, start: int
) -> None:
    series = pl.Series("x", lists, dtype=pl.List(pl.Int64)).cast(pl.List(dtype))[start:]
    assert map_values(series, lambda values: values).equals(series)
    without_null = series.fill_null([])
    assert lists_of(values_of(series), lengths_of(series)).equals(without_null)
    counted = Counter(value for row in without_null.to_list() for value in row if value is not None)
    counts = count_values(series.to_frame().lazy(), pl.col("x"))
    assert dict(counts.iter_rows()) == counted
    by_day = series.to_frame().with_columns(pl.lit(0, pl.UInt32).alias(DAY))
    both = count_values_by_day(by_day, pl.col("x"), pl.col("x"))
    assert dict(both.select("value", "count").iter_rows()) == {
        value: 2 * count for value, count in counted.items()
    }
