"""Lists of ids and their weights are inferred in every format, and lengths are counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pyarrow import orc

from features.infer.check_log import ListSummary, check_log
from tests.factories.shop_logs import entry_of, files_at, infer, unsure_of

NUM_ROWS = 400
MAX_LENGTH = 9
KINDS = ("text", "json_lines", "parquet", "orc", "arrow")


def rows_with_lists() -> list[dict[str, Any]]:
    """Return rows with lists of 0 to 9 values; one of the lists has 30."""
    random = np.random.default_rng(3)
    rows = []
    for i in range(NUM_ROWS):
        length = 30 if i == 7 else i % (MAX_LENGTH + 1)
        codes = [f"{code:08x}" for code in random.integers(2**20, 2**20 + 50, i % 3)]
        rows.append(
            {
                "clicked": i % 2,
                "price": i / 8,
                "viewed": None if i % 50 == 1 else random.integers(1, 60, length).tolist(),
                "weight": None if i % 50 == 1 else random.integers(1, 9, length) / 8 + 0.01,
                "tags": [f"t{tag}" for tag in random.integers(0, 20, 2)],
                "zips": [f"{code:05}" for code in random.integers(0, 30, 2)],
                "codes": codes,
                "seen": [i * 3, i * 3 + 1],
                "nothing": [],
            }
        )
        if rows[-1]["weight"] is not None:
            rows[-1]["weight"] = rows[-1]["weight"].tolist()
    return rows


def write(path: Path, rows: list[dict[str, Any]], kind: str) -> Path:
    if kind == "json_lines":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    dtypes = {"nothing": pl.List(pl.Int64), "weight": pl.List(pl.Float64)}
    table = pl.DataFrame(rows, schema_overrides=dtypes, infer_schema_length=None)
    if kind == "text":
        lists = pl.col(pl.List).cast(pl.List(pl.String)).list.join("|")
        table.select(~pl.selectors.list(), lists).select(table.columns).write_csv(path)
    elif kind == "parquet":
        table.write_parquet(path)
    elif kind == "arrow":
        table.write_ipc(path)
    else:
        orc.write_table(table.to_arrow(compat_level=pl.CompatLevel.oldest()), path)
    return path


def lists(kind: str, max_length: int) -> dict[str, Any]:
    separator = {"separator": "|"} if kind == "text" else {}
    return {"list": {**separator, "pooling": "mean", "max_length": max_length}}


def category(parse: str) -> dict[str, Any]:
    return {"kind": "categorical", "parse": parse, "policy": "vocabulary"}


@pytest.mark.parametrize("kind", KINDS)
def test_lists_in_every_format(tmp_path: Path, kind: str) -> None:
    inferred, schema = infer(write(tmp_path / "log", rows_with_lists(), kind))
    assert entry_of(inferred, "viewed") == category("integer") | lists(kind, MAX_LENGTH)
    assert entry_of(inferred, "tags") == category("string") | lists(kind, 2)
    assert entry_of(inferred, "zips") == category("string") | lists(kind, 2)  # 00042 is not 42
    assert entry_of(inferred, "codes") == category("hex32") | lists(kind, 2)
    for name in ("weight", "seen", "nothing"):
        assert entry_of(inferred, name) == {"kind": "ignored"}
    assert "as long as the lists of viewed" in unsure_of(inferred, "weight")
    assert "pooling: sum, weights: weight in its list" in unsure_of(inferred, "weight")
    (seen,) = (guess.seen for guess in inferred.guesses if guess.name == "viewed")
    assert seen.startswith("lists of up to 30, 59 values; 99 % up to 9")
    assert ("separates values" in unsure_of(inferred, "viewed")) == (kind == "text")
    assert [one.name for one in schema.list_features] == ["viewed", "tags", "zips", "codes"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_that_the_comment_proposes_can_be_declared(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "log", rows_with_lists(), kind)
    inferred, schema = infer(path)
    values = json.loads(json.dumps(inferred.values))
    for entry in values["columns"]:
        if entry["names"] == ["weight"]:
            entry["kind"] = "weights"
        if entry["names"] == ["viewed"]:
            entry["list"] |= {"pooling": "sum", "weights": "weight"}
    summary = check_log(files_at(path), type(schema).model_validate(values), "quarantine")
    assert (summary.num_rows, summary.num_bad_rows) == (NUM_ROWS, 0)
    lengths = summary.columns["viewed"].lists
    weights = summary.columns["weight"].lists
    assert lengths is not None
    assert weights is not None
    assert (lengths.num_values, lengths.shortest, lengths.longest) == (
        weights.num_values,
        weights.shortest,
        30,
    )
    assert (lengths.num_cut, weights.num_cut) == (1, 0)
    assert summary.columns["viewed"].num_distinct == 59


def test_texts_with_a_separator_outside_a_text_log_stay_texts(tmp_path: Path) -> None:
    rows = [{"label": i % 2, "n": i / 8, "f": f"a|{i % 9}", "g": i % 3} for i in range(300)]
    inferred, _ = infer(write(tmp_path / "log", rows, "parquet"))
    assert entry_of(inferred, "f") == {"kind": "ignored"}
    (seen,) = (guess.seen for guess in inferred.guesses if guess.name == "f")
    assert "texts with '|' between values; write lists instead" in seen


@pytest.mark.parametrize("separator", [";", ","])
def test_other_separators(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "log"
    genres = [separator.join(f"g{(i + k) % 7}" for k in range(i % 4 + 1)) for i in range(300)]
    rows = [f"{i % 2}\t{i / 8}\t{one}" for i, one in enumerate(genres)]
    path.write_text("label\tprice\tgenres\n" + "\n".join(rows) + "\n")
    inferred, _ = infer(path)
    expected = {"separator": separator, "pooling": "mean", "max_length": 4}
    assert entry_of(inferred, "genres") == category("string") | {"list": expected}


@pytest.mark.parametrize("kind", ["json_lines", "parquet"])
def test_a_column_that_has_lists_in_some_files_only_is_ignored(tmp_path: Path, kind: str) -> None:
    for day, value in enumerate([[1, 2], "x"]):
        rows = [{"label": i % 2, "n": i / 8, "s": f"s{i % 3}", "f": value} for i in range(50)]
        (tmp_path / "logs").mkdir(exist_ok=True)
        ending = "jsonl" if kind == "json_lines" else "parquet"
        write(tmp_path / "logs" / f"day_{day}.{ending}", rows, kind)
    inferred, _ = infer(tmp_path / "logs")
    assert entry_of(inferred, "f") == {"kind": "ignored"}


def test_lengths_of_many_pieces_add_up() -> None:
    summary = ListSummary(max_length=3)
    for piece in ([], [2, 5], [4, 1, 3]):
        summary.add(np.array(piece, np.int64))
    assert (summary.num_lists, summary.num_values) == (5, 15)
    assert (summary.shortest, summary.longest, summary.num_cut) == (1, 5, 2)
    assert summary.cut_share == 0.4
