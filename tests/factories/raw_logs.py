"""Logs of every format, with a column of each kind: their schemas, a row, and its lines."""

import json
from datetime import datetime
from typing import Any

import polars as pl

from features.ingest.readers import delimited_text, json_lines
from features.ingest.readers.blocks import Block
from features.ingest.readers.row_validation import ValidatedRows
from features.schema.schema import Schema

COLUMNS: list[dict[str, Any]] = [
    {"kind": "ignored", "names": ["id"]},
    {"kind": "label", "names": ["clicked"]},
    {"kind": "time", "names": ["at"], "parse": "%Y-%m-%d %H"},
    {"kind": "time", "names": ["stamp"], "parse": "unix"},
    {"kind": "dense", "names": ["price"], "parse": "float", "transform": "log1p"},
    {"kind": "dense", "names": ["stock", "age"], "parse": "integer", "transform": "log1p"},
    {"kind": "categorical", "names": ["site", "words"], "parse": "string", "policy": "vocabulary"},
    {"kind": "categorical", "names": ["code"], "parse": "hex32", "policy": "vocabulary"},
    {"kind": "categorical", "names": ["shop"], "parse": "integer", "policy": "vocabulary"},
]
TOKENS = ["", "NULL"]


def schema_of(**log_format: Any) -> Schema:
    """Return the schema of COLUMNS in a format."""
    return Schema.model_validate({"format": log_format, "columns": COLUMNS})


CSV = schema_of(kind="text", separator=",", quote='"', header=False, null_tokens=TOKENS)
CSV_WITH_HEADER = schema_of(kind="text", separator=",", quote='"', header=True, null_tokens=TOKENS)
JSON = schema_of(kind="json_lines", null_tokens=TOKENS)
PARQUET = schema_of(kind="parquet", null_tokens=TOKENS)

# A row as JSON contains it.
ROW: dict[str, Any] = {
    "id": "row-1",
    "clicked": 1,
    "at": "2024-02-29 23",
    "stamp": 1700000000,
    "price": 12.5,
    "stock": -3,
    "age": 123456789012,
    "site": "a.example",
    "words": 'red, "big" shoes for ',
    "code": "00c0ffee",
    "shop": 17,
}

# The dtypes and the values that ROW is read as, where `words` is "red, big shoes".
TYPES = [
    pl.UInt8,
    pl.Datetime("us"),
    pl.Datetime("us"),
    pl.Float64,
    pl.Int64,
    pl.Int64,
    pl.String,
    pl.String,
    pl.UInt32,
    pl.Int64,
]
TIMES = (datetime(2024, 2, 29, 23), datetime(2023, 11, 14, 22, 13, 20))
READ = (1, *TIMES, 12.5, -3, 123456789012, "a.example", "red, big shoes", 0x00C0FFEE, 17)
NULLS = dict.fromkeys(["at", "stamp", "price", "stock", "age", "site", "words", "code", "shop"], "")


def csv_line(**changes: str) -> str:
    """Return ROW as a line of CSV; changes are fields as the line contains them."""
    fields = (
        {name: str(value) for name, value in ROW.items()} | {"words": '"red, big shoes"'} | changes
    )
    return ",".join(fields.values())


def json_line(**changes: Any) -> str:
    """Return ROW as JSON, with some values changed."""
    return json.dumps(ROW | changes)


def parse_lines(
    lines: list[bytes],
    schema: Schema,
    *,
    first_line: int = 1,
    labelled: bool = True,
    short_rows: str = "quarantine",
) -> ValidatedRows:
    """Parse lines as one block of a log without a header."""
    block = Block(b"".join(line + b"\n" for line in lines), first_line, len(lines), 0)
    if schema.format.kind == "json_lines":
        return json_lines.parse_block(
            block, json_lines.Layout.of_log(schema, block, labelled=labelled)
        )
    layout = delimited_text.Layout.of_log(
        schema, schema.log_columns(labelled=labelled), labelled=labelled, short_rows=short_rows
    )
    return delimited_text.parse_block(block, layout)
