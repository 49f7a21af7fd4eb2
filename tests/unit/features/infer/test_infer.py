"""The schema that is inferred from a log: its format, its label, its columns and its days."""

import gzip
import json
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import orc

from common.files import DataError
from features.ingest.readers.read_log import read_log
from features.schema.schema import Schema, load_schema, text_format
from tests.factories.generated_logs import write_log
from tests.factories.shop_logs import START, entry_of, infer, shop_log, unsure_of
from tests.factories.support import real_log

NUM_ROWS = 3000
IGNORED = {"kind": "ignored"}
STRING = {"kind": "categorical", "parse": "string", "policy": "vocabulary"}
INTEGER = {"kind": "categorical", "parse": "integer", "policy": "vocabulary"}
HEX32 = {"kind": "categorical", "parse": "hex32", "policy": "vocabulary"}
LOG1P = {"kind": "dense", "parse": "integer", "transform": "log1p"}


def bar(max_length: int) -> dict[str, object]:
    """Return the options of lists with bars between their values."""
    return {"separator": "|", "pooling": "mean", "max_length": max_length}


def csv(path: Path, **columns: Sequence[object]) -> Path:
    """Write columns of texts; two more columns make it a log."""
    num_rows = len(next(iter(columns.values())))
    table: dict[str, Sequence[object]] = {
        "label": [i % 2 for i in range(num_rows)],
        "site": [f"s{i % 3}" for i in range(num_rows)],
        "price": [i * 0.37 for i in range(num_rows)],
    }
    pl.DataFrame(columns | {k: v for k, v in table.items() if k not in columns}).write_csv(path)
    return path


def test_a_shop_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    shop_log(NUM_ROWS, 6).write_csv(path, datetime_format="%Y-%m-%d %H:%M:%S")
    inferred, schema = infer(path)
    assert inferred.values["format"] == {
        "kind": "text",
        "separator": ",",
        "quote": None,
        "header": True,
        "null_tokens": [""],
    }
    assert schema.label == "clicked"
    assert entry_of(inferred, "event") == IGNORED
    assert entry_of(inferred, "source") == IGNORED
    assert entry_of(inferred, "seen_at") == {"kind": "time", "parse": "iso8601"}
    assert entry_of(inferred, "price") == {"kind": "dense", "parse": "float", "transform": "log1p"}
    assert entry_of(inferred, "visits") == LOG1P
    assert entry_of(inferred, "shop") == STRING
    assert entry_of(inferred, "user_id") == INTEGER
    assert entry_of(inferred, "change")["transform"]["name"] == "clip"
    assert schema.days is not None
    assert schema.days.column == "seen_at"
    assert [(one.name, one.transform.name) for one in schema.derived] == [("seen_at_hour", "hour")]


@pytest.mark.parametrize("name", ["criteo", "avazu"])
def test_the_layouts_of_published_logs(tmp_path: Path, name: str) -> None:
    """The features are those of the shipped schema.

    These differ: a log without a header has no names, whole numbers of few values are categories,
    and the derived features have other names.
    """
    shipped = load_schema(name)
    has_names = text_format(shipped).header
    _, schema = infer(write_log(tmp_path, shipped, NUM_ROWS))
    kinds = {one: group.kind for group in schema.columns for one in group.names}
    expected = {one: group for group in shipped.columns for one in group.names}
    assert len(kinds) == len(expected)
    for (column, kind), (shipped_name, group) in zip(kinds.items(), expected.items(), strict=True):
        assert column == shipped_name or not has_names
        if group.kind != "ignored":  # the generated values of an identifier are few
            assert kind == group.kind, column
    assert {one.of[0] for one in schema.derived} == {one.of[0] for one in shipped.derived}


def test_real_rows_of_criteo_give_the_features_of_the_shipped_schema() -> None:
    _, schema = infer(real_log("criteo/kaggle_head_10k.tsv"))
    shipped = load_schema("criteo")
    columns = zip(_features(schema), _features(shipped), strict=True)
    differ = [old for new, old in columns if new[1:] != old[1:]]
    assert [one[0] for one in differ] == ["I10"]  # it has 6 values


def _features(schema: Schema) -> list[tuple[object, ...]]:
    return [
        (name, group.kind, group.parse, getattr(group, "transform", None))
        for group in schema.columns
        if group.kind in ("dense", "categorical")
        for name in group.names
    ]


def test_a_folder_of_parquet(tmp_path: Path) -> None:
    table = shop_log(NUM_ROWS, 6)
    (tmp_path / "logs").mkdir()
    for day in range(6):
        of_day = table.filter(pl.col("seen_at").dt.day() == day + 1)
        of_day.write_parquet(tmp_path / "logs" / f"day_{day}.parquet")
    inferred, schema = infer(tmp_path / "logs")
    assert inferred.values["format"] == {"kind": "parquet", "null_tokens": []}
    assert entry_of(inferred, "seen_at") == {"kind": "time", "parse": "iso8601"}
    assert entry_of(inferred, "user_id") == INTEGER
    assert schema.days is not None
    assert schema.days.column == "seen_at"


def test_a_folder_of_parquet_with_hive_partitions(tmp_path: Path) -> None:
    table = shop_log(NUM_ROWS, 6)
    for day in range(6):
        for region in ("eu", "us"):
            folder = tmp_path / "logs" / f"dt=2026-03-{day + 1:02}" / f"region={region}"
            folder.mkdir(parents=True)
            of_day = table.filter(pl.col("seen_at").dt.day() == day + 1)
            of_day.drop("seen_at").write_parquet(folder / "part-0.parquet")
    inferred, schema = infer(tmp_path / "logs")
    assert inferred.values["format"] == {"kind": "parquet", "null_tokens": []}
    assert entry_of(inferred, "dt") == {"kind": "time", "parse": "iso8601"}
    assert entry_of(inferred, "region") == STRING
    assert schema.days is not None
    assert schema.days.column == "dt"
    assert entry_of(inferred, "user_id") == INTEGER


def test_csv_from_pandas_with_an_index_column(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = "".join(f"{i},{i % 2},{i % 7}.0,s{i % 4}\n" for i in range(500))
    path.write_text(",target,visits,site\n" + rows.replace("\n9,1,2.0,", "\n9,1,,"))
    inferred, _ = infer(path)
    assert entry_of(inferred, "") == IGNORED
    assert inferred.label.name == "target"
    # 5.0 is a whole number here, but the rest of the log may have 5.5.
    assert entry_of(inferred, "visits") == LOG1P | {"parse": "float"}


@pytest.mark.parametrize("name", ["__index_level_0__", "Unnamed: 0", "index"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_index_of_pandas_that_begins_again_in_each_file(
    tmp_path: Path, name: str, ending: str
) -> None:
    (tmp_path / "logs").mkdir()
    for day in range(3):
        table = shop_log(400, 1, day).with_row_index(name)
        path = tmp_path / "logs" / f"day_{day}.{ending}"
        table.write_csv(path) if ending == "csv" else table.write_parquet(path)
    inferred, _ = infer(tmp_path / "logs")
    assert entry_of(inferred, name) == IGNORED


def test_files_with_the_columns_in_other_orders(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for day in range(3):
        table = shop_log(400, 1, day)
        columns = table.columns if day < 1 else table.columns[::-1]
        table.select(columns).write_csv(tmp_path / "logs" / f"day_{day}.csv")
    inferred, schema = infer(tmp_path / "logs")
    assert schema.names == shop_log(1, 1).columns
    assert entry_of(inferred, "shop") == STRING
    assert inferred.label.name == "clicked"


def test_a_file_without_the_header_of_the_others_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for day in range(2):
        path = tmp_path / "logs" / f"day_{day}.csv"
        shop_log(400, 1, day).write_csv(path, include_header=day == 0)
    with pytest.raises(DataError, match=r"day_1\.csv: line 1 has none of the columns in the"):
        infer(tmp_path / "logs")


def test_ids_above_64_bits_are_no_amounts(tmp_path: Path) -> None:
    """As floats, all of them would be the same number."""
    ids = [2**64 - 1 - i % 7 for i in range(300)]
    table = pl.DataFrame({"ref": pl.Series(ids, dtype=pl.UInt64)})
    table = pl.concat([shop_log(300, 2), table], how="horizontal")
    table.write_parquet(tmp_path / "log.parquet")
    rows = table.drop("seen_at").to_dicts()
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("log.parquet", "log.jsonl"):
        inferred, _ = infer(tmp_path / name)
        assert entry_of(inferred, "ref") == STRING


def test_whole_floats_may_have_fractions_in_the_rest_of_the_log(tmp_path: Path) -> None:
    visits = pl.Series("visits", [float(i % 300) for i in range(3000)])
    shop_log(3000, 2).with_columns(visits).write_parquet(tmp_path / "log")
    inferred, _ = infer(tmp_path / "log")
    assert entry_of(inferred, "visits") == LOG1P | {"parse": "float"}


@pytest.mark.parametrize(
    "values",
    [
        pa.array([Decimal(1)] * 300, pa.decimal256(50, 2)),
        pa.array([[Decimal(1)]] * 300, pa.list_(pa.decimal256(50, 2))),
        pa.array([{"a": Decimal(1)}] * 300, pa.struct([("a", pa.decimal256(50, 2))])),
        pa.array([[("a", 1)]] * 300, pa.map_(pa.string(), pa.int64())),
        pa.array([timedelta(days=1)] * 300),
        pa.array([START.time()] * 300),
    ],
    ids=lambda values: str(values.type),
)
def test_columns_of_types_that_cannot_be_read_are_ignored(tmp_path: Path, values: pa.Array) -> None:
    """Polars raises what is no Exception for the first three."""
    table = shop_log(300, 2).to_arrow().append_column("odd", values)
    pq.write_table(table, tmp_path / "log")
    inferred, _ = infer(tmp_path / "log")
    assert entry_of(inferred, "odd") == IGNORED
    (guess,) = (guess for guess in inferred.guesses if guess.name == "odd")
    assert "no value was seen" not in guess.seen


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    rows = [
        {
            "is_click": i % 3 == 0,
            "ts": 1_772_323_200_000 + i * 600_000,
            "price": i / 8,
            "site": f"s{i % 3}",
            "tags": ["a", "b"],
            "user": {"id": 1},
            "zip": f"{i % 50:05}",
            "n_seen": float("nan") if i % 5 else i,
        }
        for i in range(500)
    ]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    inferred, schema = infer(path)
    assert inferred.values["format"] == {"kind": "json_lines", "null_tokens": ["NaN"]}
    assert schema.label == "is_click"
    assert entry_of(inferred, "ts") == {"kind": "time", "parse": "unix_ms"}
    assert entry_of(inferred, "user") == IGNORED
    assert entry_of(inferred, "zip") == STRING  # 00042 is not 42
    assert entry_of(inferred, "n_seen") == LOG1P


@pytest.mark.parametrize(
    ("values", "entry"),
    [
        ([f"{i * 7919:08x}" for i in range(40)], HEX32),
        ([10_000_000_000_000_000_000 + i % 30 for i in range(400)], STRING),  # no int64
        ([2**45 + i % 30 for i in range(400)], INTEGER),
        ([i % 5 for i in range(400)], INTEGER),
        ([i % 300 for i in range(400)], LOG1P),
        ([(i % 300) - 1 for i in range(400)], LOG1P),
        (["NA" if i % 9 else str(i) for i in range(400)], LOG1P),
        (["" for _ in range(400)], IGNORED),
        ([i % 2 == 0 for i in range(400)], INTEGER),
        ([f"{i * 7919:08{'xX'[i % 2]}}" for i in range(40)], STRING),  # capitals would be lost
        (["a|b" if i % 3 else "c" for i in range(400)], STRING | {"list": bar(2)}),
        ([f"4|2|{i % 9}" for i in range(400)], INTEGER | {"list": bar(3)}),
        ([f"000000a{i % 9}|00000001" for i in range(400)], HEX32 | {"list": bar(2)}),
        ([f"0.{i}|0.5" for i in range(400)], IGNORED),  # weights, or an embedding
        ([f"{i % 40},5" for i in range(400)], STRING),  # a decimal comma
        ([f"red; size {i % 9}" for i in range(400)], STRING),  # a sentence
        ([f"x{i % 40};y{i % 40}" for i in range(400)], STRING),  # one part names the other
        ([f"a|{i}" for i in range(400)], IGNORED),  # an identifier
        ([f"text {i}" for i in range(400)], IGNORED),
    ],
)
def test_columns(tmp_path: Path, values: list[object], entry: dict[str, object]) -> None:
    inferred, _ = infer(csv(tmp_path / "log.csv", f=values))
    assert entry_of(inferred, "f") == entry


@pytest.mark.parametrize(
    ("name", "values", "parse"),
    [
        ("f", "%Y-%m-%dT%H:%M:%SZ", "iso8601"),
        ("f", "%Y-%m-%d", "iso8601"),
        ("f", "%d/%b/%Y:%H:%M:%S +0000", "%d/%b/%Y:%H:%M:%S %z"),
        ("f", "%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M"),
        ("f", "%d/%m/%Y", "%d/%m/%Y"),
        ("hour", "%y%m%d%H", "%y%m%d%H"),
        ("date", "%Y%m%d", "%Y%m%d"),
        ("f", "%Y-%m-%d %H:%M:%S.000 UTC", "iso8601"),
        ("f", "%Y-%m-%d %H", "iso8601"),
        ("f", "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M:%S %p"),
        ("timestamp", "%s", "unix"),
        ("timestamp", "%s.0", "unix"),
        ("timestamp", "%s.25", "unix"),
        ("event_time", "%s000", "unix_ms"),
        ("createdAt", "%s000000", "unix_us"),
        ("ts", "%s000000000", "unix_ns"),
    ],
)
def test_times(tmp_path: Path, name: str, values: str, parse: str) -> None:
    texts = [(START + timedelta(hours=2 * i)).strftime(values) for i in range(300)]
    inferred, schema = infer(csv(tmp_path / "log.csv", **{name: texts}))
    assert entry_of(inferred, name) == {"kind": "time", "parse": parse}
    assert schema.days is not None
    assert schema.days.column == name


def test_numbers_of_the_size_of_a_time_need_a_name(tmp_path: Path) -> None:
    inferred, _ = infer(csv(tmp_path / "log.csv", f=[1_772_000_000 + 977 * i for i in range(300)]))
    assert entry_of(inferred, "f") == LOG1P
    assert "parse: unix" in unsure_of(inferred, "f")


@pytest.mark.parametrize(
    ("values", "lists"),
    [
        (["0", "1"], {}),
        (["false", "true"], {}),
        (["-1", "1"], {"positive": ["1"], "negative": ["-1"]}),
        (["no", "yes"], {"positive": ["yes"], "negative": ["no"]}),
        (["N", "Y"], {"positive": ["Y"], "negative": ["N"]}),
    ],
)
def test_labels(tmp_path: Path, values: list[str], lists: dict[str, list[str]]) -> None:
    path = csv(tmp_path / "log.csv", label=[values[i % 4 == 0] for i in range(300)])
    inferred, _ = infer(path)
    assert entry_of(inferred, "label") == {"kind": "label", **lists}
    assert inferred.label.positive_share == 0.25


def test_the_user_chooses_the_label_and_other_candidates_are_named(tmp_path: Path) -> None:
    path = csv(tmp_path / "log.csv", conversion=[i % 3 // 2 for i in range(300)])
    inferred, _ = infer(path)
    assert (inferred.label.name, inferred.label.others) == ("label", ["conversion"])
    assert infer(path, "conversion")[1].label == "conversion"
    with pytest.raises(DataError, match=r"--label price: 0 and 1, .* expected, found 300 values"):
        infer(path, "price")
    with pytest.raises(DataError, match="--label nothing: no such column"):
        infer(path, "nothing")


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"label": list(range(300))}, "no column has two values"),
        ({"label": list(range(300)), "p": [0, 1] * 150, "q": [1, 0] * 150}, "could be: 'p', 'q'"),
    ],
)
def test_without_a_label_the_option_is_named(
    tmp_path: Path, columns: dict[str, Sequence[object]], found: str
) -> None:
    with pytest.raises(DataError, match=found) as caught:
        infer(csv(tmp_path / "log.csv", **columns))
    assert "give --label COLUMN" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("separator", ["\t", ",", ";", "|", "\x01"])
@pytest.mark.parametrize("header", [True, False])
def test_separators_and_headers(tmp_path: Path, separator: str, header: bool) -> None:
    path = tmp_path / "log"
    table = pl.read_csv(csv(tmp_path / "log.csv", words=[f"a, b; c {i % 9}" for i in range(300)]))
    table.write_csv(path, separator=separator, include_header=header)
    inferred, _ = infer(path)
    found = inferred.values["format"]
    assert (found["separator"], found["header"]) == (separator, header)
    assert found["quote"] == ('"' if separator in ",;" else None)


def test_a_log_of_many_days_in_one_file_is_seen_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    shop_log(40_000, 10).write_csv(path)
    inferred, schema = infer(path)
    assert not inferred.sample.is_whole
    assert schema.days is not None
    assert [one.transform.name for one in schema.derived] == ["hour", "weekday"]


def test_a_log_without_a_category_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    pl.DataFrame(
        {"label": [0, 1] * 150, "a": [i / 7 for i in range(300)], "b": [i / 3 for i in range(300)]}
    ).write_csv(path)
    inferred, schema = infer(path)
    assert len(schema.categorical_features) == len(schema.dense_features) == 1
    assert "a model needs a category" in unsure_of(inferred, schema.categorical_features[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Dear reader,\nthis is a letter.\nIt has no columns; not one.\n", "no separator"),
        (
            '[{"label": 1, "site": "a"},\n{"label": 0, "site": "b"}]',
            r"a JSON array; .*jq -c '\.\[\]'",
        ),
        ('[\n  {"label": 1, "site": "a"}\n]\n', "is a JSON array; "),
        ("label,site,price\n" + "1,caf\udce9,3\n" * 9, "not UTF-8; convert it, .*: iconv -f "),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        infer(path)


def test_the_whole_log_is_read_with_the_inferred_schema(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    shop_log(NUM_ROWS, 6).write_csv(path)
    _, schema = infer(path)
    pieces = list(read_log(path, schema, labelled=True, short_rows="quarantine"))
    assert sum(piece.rows.height for piece in pieces) == NUM_ROWS


def test_broken_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    shop_log(NUM_ROWS, 6).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"log\.parquet.*Parquet"):
        infer(path)


@pytest.mark.parametrize("kind", ["orc", "arrow"])
def test_orc_and_arrow(tmp_path: Path, kind: str) -> None:
    table = shop_log(NUM_ROWS, 6).drop("seen_at")
    path = tmp_path / f"log.{kind}"
    if kind == "orc":
        orc.write_table(table.to_arrow(compat_level=pl.CompatLevel.oldest()), path)
    else:
        table.write_ipc(path)
    inferred, _ = infer(path)
    assert inferred.values["format"] == {"kind": kind, "null_tokens": []}
    assert entry_of(inferred, "shop") == STRING


def test_files_of_two_formats_are_refused(tmp_path: Path) -> None:
    shop_log(NUM_ROWS, 6).write_parquet(tmp_path / "a.parquet")
    shop_log(NUM_ROWS, 6).write_csv(tmp_path / "b.csv")
    with pytest.raises(DataError, match="a log has one format"):
        infer(tmp_path)


def test_an_empty_first_file_is_skipped_and_a_header_alone_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    shop_log(NUM_ROWS, 6).write_csv(tmp_path / "b.csv")
    assert infer(tmp_path)[1].label == "clicked"
    with pytest.raises(DataError, match="no row can be read as text"):
        infer(csv(tmp_path / "c.csv", label=[]))
