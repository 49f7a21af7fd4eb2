"""Whatever is written to a log, the inferred schema is valid and has no bad row in the sample."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from common.artifact import ListedFile
from common.config.loading import check, read_yaml
from common.files import DataError
from features.infer.schema_file import write_schema
from features.ingest.shard import Job, ingest_file, recipe_hash
from features.schema.schema import Schema
from tests.factories.shop_logs import infer

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters='\n\r"\0'), max_size=12)
TOKENS = st.sampled_from(["", "NA", "NULL", "\\N", "NaN", "nan", "-", "None", "inf", "0", "1"])
TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2035, 1, 1))
INTEGERS = st.one_of(st.integers(-3, 9), st.integers(-(2**70), 2**70))
FLOATS = st.floats(width=32) | st.floats()
VALUES: list[st.SearchStrategy[Any]] = [
    INTEGERS,
    FLOATS,
    st.booleans(),
    TEXTS,
    st.integers(0, 2**32 - 1).map(lambda number: f"{number:08x}"),
    TIMES.map(lambda time: time.isoformat()),
    TIMES.map(lambda time: time.strftime("%d/%m/%Y %H:%M")),
    TIMES.map(lambda time: int(time.replace(tzinfo=UTC).timestamp() * 1000)),
    st.one_of(INTEGERS, FLOATS, TOKENS),
    st.one_of(TEXTS, TOKENS),
]
JSON_VALUES = [
    *VALUES,
    st.lists(st.integers(), max_size=3),
    st.lists(st.none() | INTEGERS, max_size=3),
    st.lists(st.none() | TEXTS, max_size=3),
    st.lists(FLOATS | st.sampled_from([1, "1", True]), max_size=3),
    st.lists(st.sampled_from(["00ab12cd", "7", "x|y", "NULL"]), max_size=3),
    st.dictionaries(TEXTS, st.integers(), max_size=2),
    st.one_of(TEXTS, INTEGERS, st.booleans(), st.lists(TEXTS, max_size=2)),
    st.text(max_size=3),
]
INT64 = st.integers(-(2**63), 2**63 - 1)
PARQUET_VALUES = [
    *(INT64, *VALUES[1:-2], TIMES, st.dates(), st.binary(max_size=3)),
    *(
        st.lists(st.none() | one, max_size=3)
        for one in (INT64, FLOATS, TEXTS, TIMES, st.booleans())
    ),
    st.lists(st.lists(INT64, max_size=2), max_size=2),
]
PARTS = st.sampled_from(["a", "12", "007", "0.5", "00ab12cd", "", "NULL", "a b"])
TEXT_VALUES = [
    *VALUES,
    *(st.lists(PARTS, max_size=4).map(separator.join) for separator in "|;,"),
    st.lists(st.integers(0, 5).map(str), min_size=1, max_size=4).map("|".join),
]
NAMES = st.one_of(
    TEXTS, st.sampled_from(["id", "ts", "date", "code", "price", "*", "^x$", "no", "{a: 1}", "# c"])
)


@st.composite
def tables(draw: st.DrawFn, values: list[st.SearchStrategy[Any]]) -> list[dict[str, Any]]:
    """Return rows with the columns `label` and `site`, and some others in any order."""
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    columns = {name: draw(st.sampled_from(values)) for name in names}
    columns = {name: st.none() | strategy for name, strategy in columns.items()}
    columns |= {"label": st.integers(0, 1), "site": st.sampled_from(["a", "b", "c"])}
    order = draw(st.permutations([*columns]))
    rows = draw(
        st.lists(
            st.fixed_dictionaries({name: columns[name] for name in order}), min_size=2, max_size=30
        )
    )
    for i, row in enumerate(rows):
        row["label"], row["site"] = i % 2, "ab"[i // 2 % 2]
    return rows


def check_log(folder: Path, path: Path) -> None:
    """Infer the schema of a log, write it, and read it back; no row of the sample is bad."""
    try:
        inferred, schema = infer(path, "label")
    except DataError as error:
        assert "two columns at least" in str(error)  # noqa: PT017  the only fault such a log can have
        return
    target = folder / "schema.yaml"
    write_schema(target, inferred.values, schema, inferred.guesses, ["head"], inferred.notes)
    assert check(Schema, read_yaml(target), target) == schema
    recipe = recipe_hash(schema, "quarantine")
    job = Job("log", path, ListedFile.of(path), schema, "quarantine", recipe, folder / "shards")
    shard = ingest_file(job, lambda rows, num_bytes: None)
    assert (shard.num_rows, shard.num_bad_rows) == (inferred.sample.num_rows, 0)


@settings(max_examples=25, deadline=None)
@given(rows=tables(TEXT_VALUES), separator=st.sampled_from("\t,;|"))
def test_text(tmp_path_factory: Any, rows: list[dict[str, Any]], separator: str) -> None:
    folder = tmp_path_factory.mktemp("log")
    path = folder / "log.csv"
    lines = [separator.join(f'"{name}"' for name in rows[0])]
    for row in rows:
        fields = ("" if value is None else str(value) for value in map(row.get, rows[0]))
        lines.append(
            separator.join(f'"{field}"' if separator in field else field for field in fields)
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    check_log(folder, path)


@settings(max_examples=25, deadline=None)
@given(rows=tables(JSON_VALUES))
def test_json_lines(tmp_path_factory: Any, rows: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("log")
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    check_log(folder, path)


@settings(max_examples=25, deadline=None)
@given(rows=tables(PARQUET_VALUES))
def test_parquet(tmp_path_factory: Any, rows: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("log")
    path = folder / "log.parquet"
    pl.DataFrame(rows, infer_schema_length=None, strict=False).write_parquet(path)
    check_log(folder, path)
