"""`write_head` writes the first rows of a log as a log, in each format."""

import gzip
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.ingest.readers.read_log import has_label, read_log, write_head
from features.schema.schema import Schema
from tests.factories.raw_logs import CSV, CSV_WITH_HEADER, JSON, PARQUET, ROW, csv_line, json_line

NUM_ROWS, HEAD_ROWS = 30, 7
HEADER = ",".join(ROW)


def read(path: Path, schema: Schema) -> pl.DataFrame:
    return pl.concat(
        [parsed.rows for parsed in read_log(path, schema, labelled=True, short_rows="quarantine")]
    )


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    data = "".join(f"{line}{end}" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


CSV_LINES = [csv_line(stock=str(k), words=f'"red, {k}"') for k in range(NUM_ROWS)]
JSON_LINES = [json_line(stock=k, other={"nested": [k]}) for k in range(NUM_ROWS)]


@pytest.mark.parametrize(
    ("name", "schema", "lines", "end"),
    [
        ("log.csv", CSV, CSV_LINES, "\n"),
        ("log.csv", CSV_WITH_HEADER, [HEADER, *CSV_LINES], "\n"),
        ("log.csv", CSV_WITH_HEADER, ["\ufeff" + HEADER, *CSV_LINES], "\r\n"),
        ("log.csv.gz", CSV_WITH_HEADER, [HEADER, *CSV_LINES], "\n"),
        ("log.jsonl", JSON, JSON_LINES, "\n"),
        ("log.jsonl.gz", JSON, JSON_LINES, "\n"),
    ],
    ids=["plain", "header", "BOM and CRLF", "gzip", "json lines", "json lines, gzip"],
)
def test_the_head_of_a_log_of_lines(
    tmp_path: Path, name: str, schema: Schema, lines: list[str], end: str
) -> None:
    log, head = write(tmp_path / name, lines, end), tmp_path / "head" / name
    head.parent.mkdir()
    write_head(log, schema, HEAD_ROWS, head)
    assert read(head, schema)["stock"].to_list() == list(range(HEAD_ROWS))
    assert read(head, schema).equals(read(log, schema)[:HEAD_ROWS])
    assert has_label(head, schema)
    assert head.read_bytes().decode().splitlines() == [
        line.removeprefix("\ufeff") for line in lines[: HEAD_ROWS + (HEADER in lines[0])]
    ]


@pytest.mark.parametrize("row_group_rows", [NUM_ROWS, 10])
def test_the_head_of_a_parquet_log(tmp_path: Path, row_group_rows: int) -> None:
    """Columns that the schema does not read are not in it; Polars could not read this one."""
    rows = [ROW | {"stock": k} for k in range(NUM_ROWS)]
    table = pa.Table.from_pylist(rows).append_column(
        "other", pa.array([[("a", k)] for k in range(NUM_ROWS)], pa.map_(pa.string(), pa.int64()))
    )
    log, head = tmp_path / "log.parquet", tmp_path / "head.parquet"
    pq.write_table(table, log, row_group_size=row_group_rows)
    write_head(log, PARQUET, HEAD_ROWS, head)
    expected = table.slice(0, HEAD_ROWS).drop_columns(["id", "other"])
    assert pq.read_table(head).equals(expected)
    assert read(head, PARQUET).equals(read(log, PARQUET)[:HEAD_ROWS])


def test_the_head_of_a_log_with_fewer_rows(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", CSV_LINES[:3])
    write_head(log, CSV, HEAD_ROWS, tmp_path / "head.csv")
    assert (tmp_path / "head.csv").read_bytes() == log.read_bytes()
    pq.write_table(pa.Table.from_pylist([ROW] * 3), tmp_path / "log.parquet")
    write_head(tmp_path / "log.parquet", PARQUET, HEAD_ROWS, tmp_path / "head.parquet")
    assert read(tmp_path / "head.parquet", PARQUET).height == 3
